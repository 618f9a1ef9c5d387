data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account_root = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root"
  # Composed from the name: the bucket's encryption depends on the key, so the key cannot reference the bucket.
  bucket_arn = "arn:${data.aws_partition.current.partition}:s3:::${var.name}"

  kms_key_arn = var.create_kms_key ? one(aws_kms_key.this[*].arn) : var.kms_key_arn
  uses_kms    = var.create_kms_key || var.kms_key_arn != null
}

################################################################################
# Bucket
################################################################################

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_18:Each environment decides with access_logs; staging and prod enable them
  #checkov:skip=CKV_AWS_144:A round is repeated from its clients, not restored from another region
  #checkov:skip=CKV2_AWS_62:Nothing subscribes to object events; jobs go through the lanes' queues
  #checkov:skip=CKV_AWS_145:SSE-S3 unless a KMS key is requested
  bucket        = var.name
  force_destroy = var.force_destroy

  # The bucket goes first, so that a key never goes before the objects that only it can decrypt.
  depends_on = [aws_kms_key.this]
}

# Terraform deletes a bucket's policy, versioning, public access block and lifecycle rules before the bucket, and notices
# only then that the bucket is not empty. This resource exists in Terraform's state alone. A plan that would destroy or
# replace the bucket or the key would destroy it too, which prevent_destroy refuses before anything is changed.
# environments/README.md says how to give it up.
resource "terraform_data" "keep" {
  for_each = var.force_destroy ? {} : merge(
    { bucket = aws_s3_bucket.this.id },
    var.create_kms_key ? { key = one(aws_kms_key.this[*].arn) } : {},
  )

  triggers_replace = each.value

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket = aws_s3_bucket.this.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "this" {
  bucket = aws_s3_bucket.this.id

  versioning_configuration {
    status = "Enabled"
  }
}

################################################################################
# Encryption at rest and in transit
################################################################################

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    # One data key per bucket and hour instead of one KMS request per shard and client.
    bucket_key_enabled = local.uses_kms

    apply_server_side_encryption_by_default {
      sse_algorithm     = local.uses_kms ? "aws:kms" : "AES256"
      kms_master_key_id = local.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  bucket = aws_s3_bucket.this.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "DenyWithoutTLS"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        # Updates and models are write-once for everybody, whatever their own policies allow. A multipart upload is checked
        # when it is completed: creating it and uploading its parts does not create an object.
        Sid       = "DenyReplacingUpdatesAndModels"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource = [
          "${aws_s3_bucket.this.arn}/rounds/*/updates/*",
          "${aws_s3_bucket.this.arn}/models/*/global.safetensors",
        ]
        Condition = {
          Null = { "s3:if-none-match" = "true" }
          Bool = { "s3:ObjectCreationOperation" = "true" }
        }
      },
    ]
  })

  # S3 refuses to make these two changes to one bucket at the same time.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_kms_key" "this" {
  count = var.create_kms_key ? 1 : 0

  description             = "Objects of the bucket ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30

  # IAM policies of the account decide who may administer the key and who may use it. The key can be used only through
  # S3, for objects of this bucket. In a key policy, Resource is always "*": the key itself.
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "AdministerThroughIAM"
        Effect    = "Allow"
        Principal = { AWS = local.account_root }
        Action = [
          "kms:Create*", "kms:Describe*", "kms:Enable*", "kms:List*", "kms:Put*", "kms:Update*", "kms:Revoke*",
          "kms:Disable*", "kms:Get*", "kms:Delete*", "kms:TagResource", "kms:UntagResource",
          "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion", "kms:RotateKeyOnDemand",
        ]
        Resource = "*"
      },
      {
        Sid       = "UseThroughThisBucketOnly"
        Effect    = "Allow"
        Principal = { AWS = local.account_root }
        Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource  = "*"
        Condition = {
          StringEquals = {
            "kms:CallerAccount" = data.aws_caller_identity.current.account_id
            "kms:ViaService"    = "s3.${data.aws_region.current.name}.${data.aws_partition.current.dns_suffix}"
          }
          # With a bucket key the context is the bucket, without one the object.
          StringLike = { "kms:EncryptionContext:aws:s3:arn" = [local.bucket_arn, "${local.bucket_arn}/*"] }
        }
      },
    ]
  })
}

################################################################################
# Lifecycle
################################################################################

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  # Updates, manifests, shards and reports. Published models are under models/ and do not expire.
  rule {
    id     = "expire-rounds"
    status = "Enabled"

    filter {
      prefix = "rounds/"
    }

    expiration {
      days = var.retention.round_retention_days
    }

    # Expiration only hides the current version. Updates reveal something about their clients' data, so hidden versions
    # are deleted a day later instead of being kept for a second retention period.
    noncurrent_version_expiration {
      noncurrent_days = 1
    }
  }

  rule {
    id     = "tidy-up"
    status = "Enabled"

    filter {}

    # Parts of uploads that nobody completed cost storage and appear in no listing of objects.
    abort_incomplete_multipart_upload {
      days_after_initiation = var.retention.incomplete_upload_days
    }

    # models/<model>/latest.json is replaced in every round.
    noncurrent_version_expiration {
      noncurrent_days = var.retention.noncurrent_version_days
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}
