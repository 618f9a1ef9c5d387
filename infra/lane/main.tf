data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  is_tree = var.topology != "grads-sharding"

  # One function per shard, or per leaf of a tree, at a time; an event source mapping runs 2 to 1000.
  maximum_concurrency = coalesce(var.delivery.maximum_concurrency, min(1000, max(2, module.sizing.parallel_jobs)))
}

module "sizing" {
  source = "../sizing"

  topology               = var.topology
  shards                 = var.shards
  model_bytes            = var.sizing.model_bytes
  clients                = var.sizing.clients
  function_memory_cap_mb = var.sizing.function_memory_cap_mb
  memory_mb_override     = var.sizing.memory_mb_override
}

################################################################################
# Queues
################################################################################

locals {
  # Composed from the names, because two queues that reference each other would be a cycle. Terraform also waits 25 s for
  # each change to a queue, and meanwhile it can create what needs only the queue's name.
  queue_arn_prefix      = "arn:${data.aws_partition.current.partition}:sqs:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}"
  queue_arn             = "${local.queue_arn_prefix}:${var.name}"
  dead_letter_queue_arn = "${local.queue_arn_prefix}:${var.name}-dead-letters"

  queue_policies = {
    for arn in [local.queue_arn, local.dead_letter_queue_arn] : arn => jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Sid       = "DenyWithoutTLS"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      }]
    })
  }
}

resource "aws_sqs_queue" "jobs" {
  name = var.name

  # AWS recommends six times the function's timeout for queues that Lambda polls, so that a job that is being retried or
  # throttled is not delivered to a second worker meanwhile.
  visibility_timeout_seconds = 6 * module.sizing.timeout_s
  message_retention_seconds  = 345600 # 4 days; less than the dead-letter queue's 14
  sqs_managed_sse_enabled    = true

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead_letters.arn
    maxReceiveCount     = var.delivery.max_receive_count
  })

  policy = local.queue_policies[local.queue_arn]
}

# Jobs that failed max_receive_count times. An operator can look at them and send them back.
resource "aws_sqs_queue" "dead_letters" {
  name = "${var.name}-dead-letters"

  message_retention_seconds = 1209600 # 14 days, the maximum of SQS
  sqs_managed_sse_enabled   = true

  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [local.queue_arn]
  })

  policy = local.queue_policies[local.dead_letter_queue_arn]
}

################################################################################
# Function
################################################################################

resource "aws_lambda_function" "worker" {
  #checkov:skip=CKV_AWS_50:Workers report their own times in result messages; tracing every shard would only add cost
  #checkov:skip=CKV_AWS_115:A lane runs one function per shard; maximum_concurrency limits it further without reserving anything
  #checkov:skip=CKV_AWS_116:Failed jobs go to the queue's dead-letter queue; the function is never invoked asynchronously
  #checkov:skip=CKV_AWS_117:A VPC would only add a slower path to S3
  #checkov:skip=CKV_AWS_173:The environment holds a bucket's name and a queue's URL, no secrets
  #checkov:skip=CKV_AWS_272:The zip is built from this repository and pinned by its hash
  function_name = var.name
  description   = !local.is_tree ? "Averages one shard of ${var.shards} over the clients of a round" : "Adds up whole models, as an aggregator of ${var.topology}"
  role          = aws_iam_role.worker.arn

  filename         = var.function.package_path
  source_code_hash = fileexists(var.function.package_path) ? filebase64sha256(var.function.package_path) : null
  handler          = local.is_tree ? "lambdas.tree_average.handler" : "lambdas.shard_average.handler"
  runtime          = var.function.runtime
  architectures    = [var.function.cpu_architecture]

  memory_size = module.sizing.memory_mb
  timeout     = module.sizing.timeout_s

  ephemeral_storage {
    size = module.sizing.ephemeral_storage_mb
  }

  environment {
    variables = {
      FL_BUCKET           = var.bucket.name
      FL_RESULT_QUEUE_URL = var.result_queue.url
      FL_LOG_LEVEL        = var.function.log_level
    }
  }

  lifecycle {
    precondition {
      condition     = fileexists(var.function.package_path)
      error_message = "There is no zip at ${var.function.package_path} (package_path is relative to the directory that Terraform runs in). Build it first: make build ENV=<environment>."
    }

    precondition {
      condition     = module.sizing.refused == ""
      error_message = module.sizing.refused
    }
  }

  # Lambda would otherwise create the log group at the first invocation, without a retention period.
  depends_on = [aws_cloudwatch_log_group.worker, aws_iam_role_policy.worker]
}

resource "aws_cloudwatch_log_group" "worker" {
  #checkov:skip=CKV_AWS_158:Logs name rounds, clients and sizes, no values; CloudWatch encrypts them with its own key
  #checkov:skip=CKV_AWS_338:log_retention_days is the environment's choice
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.function.log_retention_days
}

resource "aws_lambda_event_source_mapping" "jobs" {
  event_source_arn = aws_sqs_queue.jobs.arn
  function_name    = aws_lambda_function.worker.arn
  enabled          = var.delivery.functions_enabled

  # A job is minutes of work. In a batch of two, the second job would wait for the first.
  batch_size              = 1
  function_response_types = ["ReportBatchItemFailures"]

  # Only if a maximum is set: with a maximum, Lambda polls an idle queue with five pollers, without one with two.
  # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html
  dynamic "scaling_config" {
    for_each = var.delivery.maximum_concurrency[*]

    content {
      maximum_concurrency = scaling_config.value
    }
  }
}

################################################################################
# Role
################################################################################

resource "aws_iam_role" "worker" {
  name                 = var.name
  path                 = var.iam.path
  description          = "The function ${var.name}"
  permissions_boundary = var.iam.permissions_boundary

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "lambda.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

module "worker" {
  source = "../worker"

  bucket           = var.bucket
  queue_arns       = [local.queue_arn]
  result_queue_arn = var.result_queue.arn
  writes           = local.is_tree ? ["partials"] : ["shards", "norms"]
}

resource "aws_iam_role_policy" "worker" {
  name = "worker"
  role = aws_iam_role.worker.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      module.worker.statements,
      [
        {
          Sid      = "WriteLogs"
          Effect   = "Allow"
          Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
          Resource = ["${aws_cloudwatch_log_group.worker.arn}:*"]
        },
      ],
    )
  })
}
