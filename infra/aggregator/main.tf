data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account = data.aws_caller_identity.current.account_id
  region  = data.aws_region.current.name

  # Bucket names are unique among all AWS accounts, so the prefix alone may be taken.
  bucket_name       = coalesce(var.bucket_name, "${var.name_prefix}-${local.account}-${local.region}")
  result_queue_name = "${var.name_prefix}-results"

  # What every lane is given.
  bucket       = { name = module.bucket.name, arn = module.bucket.arn, kms_key_arn = module.bucket.kms_key_arn }
  result_queue = { url = aws_sqs_queue.results.url, arn = aws_sqs_queue.results.arn }
  sizing = {
    model_bytes            = var.model_bytes
    clients                = var.clients
    function_memory_cap_mb = var.function_memory_cap_mb
    memory_mb_override     = var.memory_mb_override
  }
  function = {
    package_path       = var.package_path
    runtime            = var.runtime
    cpu_architecture   = var.cpu_architecture
    log_level          = var.log_level
    log_retention_days = var.log_retention_days
  }
  iam = {
    path                 = var.iam_path
    permissions_boundary = var.permissions_boundary
  }
  delivery = {
    functions_enabled   = var.functions_enabled
    maximum_concurrency = var.maximum_concurrency
    max_receive_count   = var.max_receive_count
  }
}

################################################################################
# Bucket and result queue
################################################################################

module "bucket" {
  source = "../bucket"

  name           = local.bucket_name
  force_destroy  = var.force_destroy
  kms_key_arn    = var.kms_key_arn
  create_kms_key = var.create_kms_key
  access_logs    = var.access_logs
  retention = {
    round_retention_days    = var.round_retention_days
    noncurrent_version_days = var.noncurrent_version_days
    incomplete_upload_days  = var.incomplete_upload_days
    access_log_days         = var.access_log_days
  }
}

# One message per finished shard. Messages speed up a round and fill its report. They are kept for an hour; S3 holds the
# state of a round, so a lost message loses no work.
resource "aws_sqs_queue" "results" {
  name = local.result_queue_name

  message_retention_seconds = 3600
  sqs_managed_sse_enabled   = true

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "DenyWithoutTLS"
      Effect    = "Deny"
      Principal = "*"
      Action    = "sqs:*"
      Resource  = "arn:${data.aws_partition.current.partition}:sqs:${local.region}:${local.account}:${local.result_queue_name}"
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
}

################################################################################
# Lanes
################################################################################

module "lane" {
  source   = "../lane"
  for_each = { for shards in var.shard_counts : tostring(shards) => shards }

  name         = "${var.name_prefix}-shards-${each.key}"
  shards       = each.value
  bucket       = local.bucket
  result_queue = local.result_queue
  sizing       = local.sizing
  function     = local.function
  delivery     = local.delivery
  iam          = local.iam
}

# The trees that GradsSharding is compared with, if they are requested and a function can run them.
module "baselines" {
  source = "../baselines"

  enabled      = var.baselines
  name_prefix  = var.name_prefix
  bucket       = local.bucket
  result_queue = local.result_queue
  sizing       = local.sizing
  function     = local.function
  delivery     = local.delivery
  iam          = local.iam
}

locals {
  all_lanes = merge(module.lane, module.baselines.lanes)

  # One pattern for all shard counts of as many digits: a policy names few queues, whatever the number of lanes, and a name
  # that ends in -dead-letters fits none of them.
  lane_names = concat(
    [
      for digits in distinct([for shards in var.shard_counts : length(tostring(shards))]) :
      "${var.name_prefix}-shards-${join("", [for _ in range(digits) : "?"])}"
    ],
    [for topology in keys(module.baselines.lanes) : "${var.name_prefix}-${topology}"],
  )
}

# Lambda runs 10 functions at once in new accounts, and 1,000 in others unless the quota was raised.
data "aws_servicequotas_service_quota" "concurrent_executions" {
  count = var.check_concurrency_quota ? 1 : 0

  service_code = "lambda"
  quota_code   = "L-B99A9384"
}

locals {
  quota = one(data.aws_servicequotas_service_quota.concurrent_executions[*].value)
  # The lane that runs the most functions at once; zero if none takes jobs.
  functions_at_once = var.functions_enabled ? max(values(local.all_lanes)[*].deployment.maximum_concurrency...) : 0
}

################################################################################
# Monitoring and access
################################################################################

module "monitoring" {
  source = "../monitoring"

  name_prefix = var.name_prefix
  alarm_email = var.alarm_email
  lanes       = { for key, lane in local.all_lanes : key => lane if var.alarms }
}

module "access" {
  source = "../access"

  name_prefix      = var.name_prefix
  bucket           = local.bucket
  result_queue_arn = local.result_queue.arn
  lane_names       = local.lane_names
  iam              = local.iam
  ci = {
    github_repository           = var.github_repository
    github_ids                  = var.github_ids
    github_branch               = var.github_branch
    create_github_oidc_provider = var.create_github_oidc_provider
    terraform_state             = var.terraform_state
  }
}
