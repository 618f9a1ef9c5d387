# The rounds that count.

locals {
  # Also in versions.tf: a backend block takes no expressions.
  state_key = "fedagg/prod/terraform.tfstate"
}

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      project     = "fedagg"
      environment = "prod"
    }
  }
}

module "aggregator" {
  source = "../../infra/aggregator"

  environment = "prod"
  name_prefix = var.name_prefix

  shard_counts = var.shard_counts
  baselines    = var.baselines
  model_bytes  = var.model_bytes
  clients      = var.clients

  package_path           = var.package_path
  runtime                = var.runtime
  architecture           = var.architecture
  function_memory_cap_mb = var.function_memory_cap_mb
  memory_mb_override     = var.memory_mb_override
  functions_enabled      = var.functions_enabled
  maximum_concurrency    = var.maximum_concurrency

  bucket_name             = var.bucket_name
  kms_key_arn             = var.kms_key_arn
  force_destroy           = false
  access_logs             = true
  create_kms_key          = var.kms_key_arn == null
  round_retention_days    = 30
  noncurrent_version_days = 90
  log_retention_days      = 90
  log_level               = "INFO"

  alarm_email                 = var.alarm_email
  github_repository           = var.github_repository
  github_branch               = var.github_branch
  create_github_oidc_provider = var.create_github_oidc_provider
  terraform_state             = var.terraform_state_bucket == null ? null : { bucket = var.terraform_state_bucket, key = local.state_key }
}
