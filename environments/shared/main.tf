# One environment. Each directory beside this one links to these files, sets its own values in terraform.tfvars, and is
# deployed separately. environments/README.md has the details.

locals {
  tags = merge(var.tags, {
    project     = "fedagg"
    environment = var.environment
  })
}

module "aggregator" {
  source = "../../infra/aggregator"

  environment  = var.environment
  name_prefix  = var.name_prefix
  endpoint_url = local.endpoint_url

  shard_counts = var.shard_counts
  baselines    = var.baselines
  model_bytes  = var.model_bytes
  clients      = var.clients

  package_path           = var.package_path
  runtime                = var.runtime
  cpu_architecture       = var.cpu_architecture
  function_memory_cap_mb = var.function_memory_cap_mb
  memory_mb_override     = var.memory_mb_override
  log_level              = var.log_level
  log_retention_days     = var.log_retention_days

  functions_enabled   = var.functions_enabled
  maximum_concurrency = var.maximum_concurrency

  check_concurrency_quota = var.check_concurrency_quota
  max_receive_count       = var.max_receive_count

  bucket_name             = var.bucket_name
  force_destroy           = var.force_destroy
  kms_key_arn             = var.kms_key_arn
  create_kms_key          = var.create_kms_key && var.kms_key_arn == null
  access_logs             = var.access_logs
  round_retention_days    = var.round_retention_days
  noncurrent_version_days = var.noncurrent_version_days
  incomplete_upload_days  = var.incomplete_upload_days
  access_log_days         = var.access_log_days

  alarms                      = var.alarms
  alarm_email                 = var.alarm_email
  iam_path                    = var.iam_path
  permissions_boundary        = var.permissions_boundary
  github_repository           = var.github_repository
  github_ids                  = var.github_ids
  github_branch               = var.github_branch
  create_github_oidc_provider = var.create_github_oidc_provider
  terraform_state             = var.terraform_state_bucket == null ? null : { bucket = var.terraform_state_bucket, key = var.terraform_state_key }
}
