# Access logs: who read or wrote which object, when and from where. S3 delivers them within hours to a second bucket.

locals {
  logged = toset(var.access_logs ? [var.name] : [])
}

resource "aws_s3_bucket" "logs" {
  #checkov:skip=CKV_AWS_18:Logging the deliveries to the log bucket would cause further deliveries
  #checkov:skip=CKV_AWS_21:S3 writes logs once and they expire; there is no earlier version to restore
  #checkov:skip=CKV_AWS_144:Logs are not worth a second region
  #checkov:skip=CKV_AWS_145:S3 delivers access logs to buckets with SSE-S3 only
  #checkov:skip=CKV2_AWS_62:Nothing subscribes to log deliveries
  for_each = local.logged

  bucket        = "${each.key}-logs"
  force_destroy = var.force_destroy
}

resource "aws_s3_bucket_ownership_controls" "logs" {
  for_each = local.logged

  bucket = aws_s3_bucket.logs[each.key].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "logs" {
  for_each = local.logged

  bucket = aws_s3_bucket.logs[each.key].id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "logs" {
  for_each = local.logged

  bucket = aws_s3_bucket.logs[each.key].id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "logs" {
  for_each = local.logged

  bucket = aws_s3_bucket.logs[each.key].id

  rule {
    id     = "expire"
    status = "Enabled"

    filter {}

    expiration {
      days = var.retention.access_log_days
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = var.retention.incomplete_upload_days
    }
  }
}

resource "aws_s3_bucket_policy" "logs" {
  for_each = local.logged

  bucket = aws_s3_bucket.logs[each.key].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "DenyWithoutTLS"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.logs[each.key].arn, "${aws_s3_bucket.logs[each.key].arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "DeliverLogs"
        Effect    = "Allow"
        Principal = { Service = "logging.s3.amazonaws.com" }
        Action    = "s3:PutObject"
        Resource  = ["${aws_s3_bucket.logs[each.key].arn}/s3/*"]
        Condition = {
          ArnLike      = { "aws:SourceArn" = local.bucket_arn }
          StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id }
        }
      },
    ]
  })

  depends_on = [aws_s3_bucket_public_access_block.logs]
}

resource "aws_s3_bucket_logging" "this" {
  for_each = local.logged

  bucket        = aws_s3_bucket.this.id
  target_bucket = aws_s3_bucket.logs[each.key].id
  target_prefix = "s3/"

  depends_on = [aws_s3_bucket_policy.logs]
}
