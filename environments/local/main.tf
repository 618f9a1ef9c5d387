# The same deployment on this machine: an AWS emulator instead of AWS, no account, no cost.

provider "aws" {
  region = var.region

  # The emulator takes any credentials; these keep real ones out of the way.
  access_key = "test"
  secret_key = "test"

  # Nothing here may ask AWS about an account that does not exist.
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
  skip_region_validation      = true

  # Buckets are paths: <bucket>.127.0.0.1 has no address.
  s3_use_path_style = true

  endpoints {
    cloudwatch     = var.aws_endpoint_url
    cloudwatchlogs = var.aws_endpoint_url
    iam            = var.aws_endpoint_url
    kms            = var.aws_endpoint_url
    lambda         = var.aws_endpoint_url
    s3             = var.aws_endpoint_url
    sns            = var.aws_endpoint_url
    sqs            = var.aws_endpoint_url
    sts            = var.aws_endpoint_url
  }

  default_tags {
    tags = {
      project     = "fedagg"
      environment = "local"
    }
  }
}

module "aggregator" {
  source = "../../infra/aggregator"

  environment  = "local"
  name_prefix  = var.name_prefix
  endpoint_url = var.aws_endpoint_url

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

  force_destroy        = true
  round_retention_days = 1
  log_retention_days   = 1

  # Nobody is told by an emulator, and one that forgets half of an alarm makes every plan want to mend it.
  alarms = false
}
