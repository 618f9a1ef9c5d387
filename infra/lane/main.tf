data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

################################################################################
# Sizing
################################################################################

# The rule that orchestrator/planner.py plans with; the constants are in one file for both. Each quotient is taken last,
# of whole numbers where possible, so that neither side rounds up what the other does not.
locals {
  sizing = jsondecode(file("${path.module}/../../orchestrator/planning/sizing.json"))

  shard_bytes = ceil(var.model_bytes / var.shards)

  # An aggregator of a tree holds the complete model as float64 sums, and reads and writes such sums of up to fan_in
  # others. fan_in is the smallest whole number whose square (lambda-FL) or cube (LIFL) reaches the clients: searched
  # for, since roots in floating point may be a little too large.
  sum_bytes = var.tree == null ? 0 : local.sizing.tree_sum_factor * var.model_bytes
  fan_in = (
    var.tree == null ? var.clients
    : var.tree == "lambda-fl" ? min([for k in range(1, 318) : k if k * k >= var.clients]...)
    : min([for k in range(1, 48) : k if k * k * k >= var.clients]...)
  )
  moved_bytes = (local.fan_in + 1) * (var.tree == null ? local.shard_bytes : local.sum_bytes)

  # A worker streams: its memory holds pieces and the manifest, whatever the shard's size. A quarter is kept free.
  memory_rule_mb = max(
    local.sizing.memory_mb,
    local.sizing.memory_step_mb * ceil(
      (
        (1000 * local.sizing.worker_peak_mb + local.sizing.manifest_mb_per_1000_clients * var.clients) * 1.25 * 1048576
        + 1000 * local.sum_bytes
      ) / (1000 * 1048576 * local.sizing.memory_step_mb)
    ),
  )
  memory_mb = var.memory_mb_override == null ? local.memory_rule_mb : var.memory_mb_override

  # It reads its shard once per client and writes it once, as fast as the network or its share of a CPU allows; and each
  # client costs a request, which is most of the work where shards are small.
  vcpu        = local.memory_mb * local.sizing.vcpu_per_mb
  bytes_per_s = min(local.sizing.network_bytes_per_s, 1000000000 * local.vcpu / local.sizing.cpu_seconds_per_gb)
  requests_s  = local.fan_in * local.sizing.cpu_seconds_per_get / local.vcpu
  expected_s  = local.moved_bytes / local.bytes_per_s + local.requests_s
  timeout_s = min(
    local.sizing.timeout_max_s,
    max(local.sizing.timeout_min_s, ceil(local.sizing.timeout_safety * local.expected_s)),
  )

  # The averaged shard is spooled to /tmp before it is sent; beside it lie the sums that are parked between two groups of
  # clients.
  ephemeral_storage_mb = max(
    local.sizing.ephemeral_storage_min_mb,
    ceil(local.shard_bytes / 1048576) + local.sizing.ephemeral_storage_spare_mb,
  )

  # One invocation per shard, or per leaf of a tree, at a time; the event source mapping takes 2 to 1000.
  jobs_at_once        = var.tree == null ? var.shards : ceil(var.clients / local.fan_in)
  maximum_concurrency = coalesce(var.maximum_concurrency, min(1000, max(2, local.jobs_at_once)))

  what = var.tree == null ? "Lane for ${var.shards} shards" : "Lane for ${var.tree}"
}

################################################################################
# Queues
################################################################################

locals {
  # Written out, not referenced: two queues that name each other would be a cycle, and Terraform waits 25 s for each
  # change to a queue; meanwhile it can create what only needs the queue's name.
  queue_arn_prefix      = "arn:${data.aws_partition.current.partition}:sqs:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}"
  queue_arn             = "${local.queue_arn_prefix}:${var.name}"
  dead_letter_queue_arn = "${local.queue_arn_prefix}:${var.name}-dead-letters"
}

resource "aws_sqs_queue" "jobs" {
  name = var.name

  # AWS's advice for queues that Lambda polls: six times the function's timeout, so that a job that is being retried or
  # throttled is not delivered to a second worker meanwhile.
  visibility_timeout_seconds = 6 * local.timeout_s
  message_retention_seconds  = var.job_retention_hours * 3600
  sqs_managed_sse_enabled    = true

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead_letters.arn
    maxReceiveCount     = var.max_receive_count
  })

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "DenyWithoutTLS"
      Effect    = "Deny"
      Principal = "*"
      Action    = "sqs:*"
      Resource  = local.queue_arn
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
}

# Jobs that failed max_receive_count times, kept for a person to look at and to send back.
resource "aws_sqs_queue" "dead_letters" {
  name = "${var.name}-dead-letters"

  message_retention_seconds = 1209600 # 14 days, the most SQS has
  sqs_managed_sse_enabled   = true

  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [local.queue_arn]
  })

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "DenyWithoutTLS"
      Effect    = "Deny"
      Principal = "*"
      Action    = "sqs:*"
      Resource  = local.dead_letter_queue_arn
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
}

################################################################################
# Function
################################################################################

resource "aws_lambda_function" "worker" {
  #checkov:skip=CKV_AWS_50:Workers report their own times in result messages; tracing every shard would only cost
  #checkov:skip=CKV_AWS_115:The event source mapping's maximum_concurrency limits it without reserving it
  #checkov:skip=CKV_AWS_116:Failed jobs go to the queue's dead-letter queue; the function is never invoked asynchronously
  #checkov:skip=CKV_AWS_117:A VPC would only add a slower way to S3
  #checkov:skip=CKV_AWS_173:The environment holds a bucket's name and a queue's URL, no secrets
  #checkov:skip=CKV_AWS_272:The zip is built from this repository and pinned by its hash
  function_name = var.name
  description   = var.tree == null ? "Averages one shard of ${var.shards} over the clients of a round" : "Adds up whole models, as an aggregator of ${var.tree}"
  role          = aws_iam_role.worker.arn

  filename         = var.package_path
  source_code_hash = fileexists(var.package_path) ? filebase64sha256(var.package_path) : null
  handler          = var.tree == null ? "lambdas.shard_average.handler" : "lambdas.tree_average.handler"
  runtime          = var.runtime
  architectures    = [var.architecture]

  memory_size = local.memory_mb
  timeout     = local.timeout_s

  ephemeral_storage {
    size = local.ephemeral_storage_mb
  }

  environment {
    variables = {
      FL_BUCKET           = var.bucket.name
      FL_RESULT_QUEUE_URL = var.result_queue.url
      FL_LOG_LEVEL        = var.log_level
    }
  }

  lifecycle {
    precondition {
      condition     = fileexists(var.package_path)
      error_message = "There is no zip at ${var.package_path} (package_path is taken from the directory that Terraform runs in). Build it first: make package."
    }

    precondition {
      condition     = local.memory_mb <= var.function_memory_cap_mb
      error_message = "${local.what}: its function needs ${local.memory_mb} MB for ${var.clients} clients, and function_memory_cap_mb is ${var.function_memory_cap_mb}. Raise function_memory_cap_mb (up to 10240, if the account allows it) or lower clients."
    }

    precondition {
      condition     = local.expected_s <= local.sizing.timeout_max_s
      error_message = "${local.what}: averaging ${local.shard_bytes} bytes over ${var.clients} clients takes about ${ceil(local.expected_s)} s, and a function may run ${local.sizing.timeout_max_s} s; use more shards."
    }

    precondition {
      condition     = local.ephemeral_storage_mb <= local.sizing.ephemeral_storage_max_mb
      error_message = "${local.what}: a shard of ${local.shard_bytes} bytes needs ${local.ephemeral_storage_mb} MB in /tmp, and a function may have ${local.sizing.ephemeral_storage_max_mb} MB; use more shards."
    }
  }

  # Lambda would create the log group itself, without retention, at the first invocation.
  depends_on = [aws_cloudwatch_log_group.worker, aws_iam_role_policy.worker]
}

resource "aws_cloudwatch_log_group" "worker" {
  #checkov:skip=CKV_AWS_158:Logs name rounds, clients and sizes, no values; CloudWatch encrypts them with its own key
  #checkov:skip=CKV_AWS_338:log_retention_days is the environment's choice
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.log_retention_days
}

resource "aws_lambda_event_source_mapping" "jobs" {
  event_source_arn = aws_sqs_queue.jobs.arn
  function_name    = aws_lambda_function.worker.arn
  enabled          = var.functions_enabled

  # A job is minutes of work: batching two would only make the second wait.
  batch_size              = 1
  function_response_types = ["ReportBatchItemFailures"]

  scaling_config {
    maximum_concurrency = local.maximum_concurrency
  }
}

################################################################################
# Role
################################################################################

resource "aws_iam_role" "worker" {
  name        = var.name
  description = "The function ${var.name}"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "lambda.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "worker" {
  name = "worker"
  role = aws_iam_role.worker.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "ReadRounds"
          Effect   = "Allow"
          Action   = ["s3:GetObject"]
          Resource = ["${var.bucket.arn}/rounds/*"]
        },
        {
          Sid    = "WriteShards"
          Effect = "Allow"
          Action = ["s3:PutObject"]
          Resource = concat(
            ["${var.bucket.arn}/models/*/global.safetensors"],
            [for kind in var.tree == null ? ["shards", "norms"] : ["partials"] : "${var.bucket.arn}/rounds/*/${kind}/*"],
          )
        },
        {
          # A redelivered job looks whether its part is there already.
          Sid      = "FindParts"
          Effect   = "Allow"
          Action   = ["s3:ListMultipartUploadParts"]
          Resource = ["${var.bucket.arn}/models/*/global.safetensors"]
        },
        {
          # Without it S3 answers 403 instead of 404 for an object that does not exist. The key is the prefix then; a
          # worker could list rounds/, all of which it may read, and nothing else.
          Sid       = "TellMissingFromForbidden"
          Effect    = "Allow"
          Action    = ["s3:ListBucket"]
          Resource  = [var.bucket.arn]
          Condition = { StringLike = { "s3:prefix" = ["rounds/*"] } }
        },
        {
          # A job that failed is made visible again after seconds, not after the queue's visibility timeout.
          Sid      = "TakeJobs"
          Effect   = "Allow"
          Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"]
          Resource = [local.queue_arn]
        },
        {
          Sid      = "SendResults"
          Effect   = "Allow"
          Action   = ["sqs:SendMessage"]
          Resource = [var.result_queue.arn]
        },
        {
          Sid      = "WriteLogs"
          Effect   = "Allow"
          Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
          Resource = ["${aws_cloudwatch_log_group.worker.arn}:*"]
        },
      ],
      [
        for key_arn in var.kms_key_arn[*] : {
          Sid      = "UseObjectKey"
          Effect   = "Allow"
          Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
          Resource = [key_arn]
        }
      ],
    )
  })
}
