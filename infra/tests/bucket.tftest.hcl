mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = {
      id  = "fedagg-test-bucket"
      arn = "arn:aws:s3:::fedagg-test-bucket"
    }
  }

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-1:123456789012:key/made-here" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }

  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }
}

# With force_destroy, because `terraform test` destroys what it applied, and nothing destroys a bucket that is kept.
variables {
  name          = "fedagg-test-bucket"
  force_destroy = true
  retention     = { round_retention_days = 5, noncurrent_version_days = 30, incomplete_upload_days = 7 }
}

run "the_bucket_is_closed_to_the_public_in_every_way" {
  module {
    source = "./bucket"
  }

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls,
      aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls,
      aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "All four public access settings must be on."
  }

  assert {
    condition     = aws_s3_bucket_ownership_controls.this.rule[0].object_ownership == "BucketOwnerEnforced"
    error_message = "ACLs must be off."
  }

}

run "a_plan_that_destroys_the_bucket_or_its_key_is_refused_unless_models_may_go" {
  command = plan

  module {
    source = "./bucket"
  }

  variables {
    force_destroy  = false
    create_kms_key = true
  }

  assert {
    condition     = !aws_s3_bucket.this.force_destroy && keys(terraform_data.keep) == ["bucket", "key"]
    error_message = "The bucket and the key must each have something that prevents their destruction."
  }
}

run "where_models_may_go_nothing_prevents_it" {
  command = plan

  module {
    source = "./bucket"
  }

  variables {
    create_kms_key = true
  }

  assert {
    condition     = aws_s3_bucket.this.force_destroy && length(terraform_data.keep) == 0
    error_message = "force_destroy must allow the destruction of the bucket and the key."
  }
}

run "the_bucket_refuses_connections_without_tls_and_updates_and_models_that_replace_another" {
  module {
    source = "./bucket"
  }

  assert {
    condition = jsondecode(aws_s3_bucket_policy.this.policy).Statement == [
      {
        Sid       = "DenyWithoutTLS"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = ["arn:aws:s3:::fedagg-test-bucket", "arn:aws:s3:::fedagg-test-bucket/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "DenyReplacingUpdatesAndModels"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource = [
          "arn:aws:s3:::fedagg-test-bucket/rounds/*/updates/*",
          "arn:aws:s3:::fedagg-test-bucket/models/*/global.safetensors",
        ]
        Condition = {
          Null = { "s3:if-none-match" = "true" }
          Bool = { "s3:ObjectCreationOperation" = "true" }
        }
      },
    ]
    error_message = "The policy must deny requests without TLS and unconditional writes of updates and models, and allow nothing: ${aws_s3_bucket_policy.this.policy}"
  }
}

run "objects_are_versioned_and_encrypted_by_s3" {
  module {
    source = "./bucket"
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "Versioning must be on."
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0].sse_algorithm == "AES256"
    error_message = "Objects must be encrypted with SSE-S3 when no key is given."
  }

  assert {
    condition     = output.kms_key_arn == null && length(aws_kms_key.this) == 0
    error_message = "No KMS key may be created or named when none is requested."
  }
}

run "objects_are_encrypted_with_the_key_that_is_given" {
  module {
    source = "./bucket"
  }

  variables {
    kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/given"
  }

  assert {
    condition = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0] == {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = "arn:aws:kms:us-east-1:123456789012:key/given"
    }
    error_message = "Objects must be encrypted with kms_key_arn."
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).bucket_key_enabled
    error_message = "A KMS request per object must be avoided with a bucket key."
  }
}

run "a_key_is_created_and_rotated_when_requested" {
  module {
    source = "./bucket"
  }

  variables {
    create_kms_key = true
  }

  assert {
    condition     = aws_kms_key.this[0].enable_key_rotation && output.kms_key_arn == "arn:aws:kms:us-east-1:123456789012:key/made-here"
    error_message = "The key must rotate and be in the output."
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0].kms_master_key_id == "arn:aws:kms:us-east-1:123456789012:key/made-here"
    error_message = "Objects must be encrypted with the key that was created."
  }
}

run "the_key_is_used_through_s3_for_this_bucket_only" {
  module {
    source = "./bucket"
  }

  variables {
    create_kms_key = true
  }

  assert {
    condition = [
      for s in jsondecode(aws_kms_key.this[0].policy).Statement : [s.Principal, s.Condition]
      if length(setintersection(s.Action, ["kms:*", "kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey", "kms:ReEncrypt*"])) > 0
      ] == [[
        { AWS = "arn:aws:iam::123456789012:root" },
        {
          StringEquals = { "kms:CallerAccount" = "123456789012", "kms:ViaService" = "s3.us-east-1.amazonaws.com" }
          StringLike   = { "kms:EncryptionContext:aws:s3:arn" = ["arn:aws:s3:::fedagg-test-bucket", "arn:aws:s3:::fedagg-test-bucket/*"] }
        },
    ]]
    error_message = "The key must not decrypt anything but this bucket's objects: ${aws_kms_key.this[0].policy}"
  }
}

run "in_another_partition_s3_has_another_host_name" {
  module {
    source = "./bucket"
  }

  variables {
    create_kms_key = true
  }

  override_data {
    target = data.aws_region.current
    values = { name = "cn-north-1" }
  }

  override_data {
    target = data.aws_partition.current
    values = { partition = "aws-cn", dns_suffix = "amazonaws.com.cn" }
  }

  assert {
    condition = [
      for s in jsondecode(aws_kms_key.this[0].policy).Statement : [s.Condition.StringEquals["kms:ViaService"], s.Condition.StringLike["kms:EncryptionContext:aws:s3:arn"][0]]
      if s.Sid == "UseThroughThisBucketOnly"
    ] == [["s3.cn-north-1.amazonaws.com.cn", "arn:aws-cn:s3:::fedagg-test-bucket"]]
    error_message = "Nobody could use the key in China: ${aws_kms_key.this[0].policy}"
  }
}

run "access_logs_go_to_a_closed_bucket_that_only_s3_writes_to" {
  module {
    source = "./bucket"
  }

  variables {
    access_logs = true
  }

  assert {
    condition     = aws_s3_bucket.logs["fedagg-test-bucket"].bucket == "fedagg-test-bucket-logs" && length(aws_s3_bucket_logging.this) == 1
    error_message = "Requests must be logged to a second bucket."
  }

  assert {
    condition = [
      for s in jsondecode(aws_s3_bucket_policy.logs["fedagg-test-bucket"].policy).Statement : [s.Principal, s.Action] if s.Effect == "Allow"
    ] == [[{ Service = "logging.s3.amazonaws.com" }, "s3:PutObject"]]
    error_message = "Only S3's log delivery may write to it."
  }

  assert {
    condition     = alltrue([for block in aws_s3_bucket_public_access_block.logs : block.block_public_acls && block.block_public_policy && block.ignore_public_acls && block.restrict_public_buckets])
    error_message = "The log bucket must be closed to the public."
  }
}

run "access_logs_expire_when_they_are_to" {
  module {
    source = "./bucket"
  }

  variables {
    access_logs = true
    retention   = { round_retention_days = 5, noncurrent_version_days = 30, incomplete_upload_days = 7, access_log_days = 400 }
  }

  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.logs["fedagg-test-bucket"].rule[0].expiration[0].days == 400
    error_message = "Logs must be kept for access_log_days."
  }
}

run "there_is_no_log_bucket_unless_requested" {
  module {
    source = "./bucket"
  }

  assert {
    condition     = length(aws_s3_bucket.logs) == 0 && length(aws_s3_bucket_logging.this) == 0
    error_message = "Access logs cost money and must be requested."
  }
}

run "rounds_expire_and_models_do_not" {
  module {
    source = "./bucket"
  }

  assert {
    condition = {
      for rule in aws_s3_bucket_lifecycle_configuration.this.rule :
      rule.filter[0].prefix => rule.expiration[0].days if try(rule.expiration[0].days, null) != null && rule.expiration[0].days > 0
    } == { "rounds/" = 5 }
    error_message = "The one rule that expires current versions must be for rounds/, after round_retention_days."
  }

  assert {
    condition     = alltrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.status == "Enabled"])
    error_message = "Every lifecycle rule must be enabled."
  }
}

run "old_versions_and_unfinished_uploads_expire_everywhere" {
  module {
    source = "./bucket"
  }

  variables {
    retention = { round_retention_days = 5, noncurrent_version_days = 11, incomplete_upload_days = 3 }
  }

  assert {
    condition = [
      for rule in aws_s3_bucket_lifecycle_configuration.this.rule :
      [rule.noncurrent_version_expiration[0].noncurrent_days, rule.abort_incomplete_multipart_upload[0].days_after_initiation]
      if rule.id == "tidy-up"
    ] == [[11, 3]]
    error_message = "The rule for all objects must carry both numbers."
  }

  assert {
    condition = [
      for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.noncurrent_version_expiration[0].noncurrent_days
      if rule.id == "expire-rounds"
    ] == [1]
    error_message = "Hidden versions of a round's objects must be deleted after a day."
  }
}
