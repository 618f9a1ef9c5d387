data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
  region    = data.aws_region.current.name

  use_object_key = [
    for key_arn in var.kms_key_arn[*] : {
      Sid      = "UseObjectKey"
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource = [key_arn]
    }
  ]
}

################################################################################
# Orchestrator: opens, closes and collects rounds
################################################################################

resource "aws_iam_policy" "orchestrator" {
  name        = "${var.name_prefix}-orchestrator"
  description = "Runs rounds: reads updates, sends jobs, receives results, publishes global models"

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "ReadAndWriteObjects"
          Effect   = "Allow"
          Action   = ["s3:GetObject", "s3:PutObject"]
          Resource = ["${var.bucket_arn}/rounds/*", "${var.bucket_arn}/models/*"]
        },
        {
          # Shards that were too small to be parts, once they are assembled, and trees' partial sums. Nothing else is ever
          # deleted.
          Sid      = "DeleteShards"
          Effect   = "Allow"
          Action   = ["s3:DeleteObject"]
          Resource = ["${var.bucket_arn}/rounds/*/shards/*", "${var.bucket_arn}/rounds/*/partials/*"]
        },
        {
          # Creating and completing an upload is s3:PutObject.
          Sid      = "WatchAndAbortUploads"
          Effect   = "Allow"
          Action   = ["s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"]
          Resource = ["${var.bucket_arn}/rounds/*", "${var.bucket_arn}/models/*"]
        },
        {
          Sid      = "ListObjects"
          Effect   = "Allow"
          Action   = ["s3:ListBucket"]
          Resource = [var.bucket_arn]
          # Whether an object is missing or forbidden is decided by this permission too; its key is the prefix then.
          Condition = { StringLike = { "s3:prefix" = ["rounds/*", "models/*"] } }
        },
        {
          # To find the uploads of orchestrators that died before they could write them down. IAM knows no prefix here.
          Sid      = "ListUploads"
          Effect   = "Allow"
          Action   = ["s3:ListBucketMultipartUploads"]
          Resource = [var.bucket_arn]
        },
        {
          Sid      = "SendJobs"
          Effect   = "Allow"
          Action   = ["sqs:SendMessage", "sqs:GetQueueAttributes"]
          Resource = var.queue_arns
        },
        {
          # Results of other rounds are put back by making them visible again.
          Sid      = "ReceiveResults"
          Effect   = "Allow"
          Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"]
          Resource = [var.result_queue_arn]
        },
        {
          # Letters of other rounds are put back, too; those of a round that goes on are queued again and deleted.
          Sid      = "LookThroughFailedJobs"
          Effect   = "Allow"
          Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"]
          Resource = var.dead_letter_queue_arns
        },
      ],
      local.use_object_key,
    )
  })
}

################################################################################
# Clients: upload an update, fetch a global model
################################################################################

locals {
  # A policy variable that IAM fills in: the value of the calling role's or user's tag `client`.
  own_update = "rounds/*/updates/$${aws:PrincipalTag/client}.safetensors"

  # What a client reads: what the round is about, its own update, the models. Never another client's update, nor the
  # manifest, which names the clients and their example counts. It lists nothing.
  client_reads = ["rounds/*/round.json", local.own_update, "models/*"]

  client_policy = {
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "UploadOwnUpdate"
          Effect   = "Allow"
          Action   = ["s3:PutObject", "s3:AbortMultipartUpload"]
          Resource = ["${var.bucket_arn}/${local.own_update}"]
        },
        {
          # Updates are write-once. A multipart upload is checked when it is completed, its parts cannot be.
          Sid      = "NeverReplaceAnUpdate"
          Effect   = "Deny"
          Action   = ["s3:PutObject"]
          Resource = ["${var.bucket_arn}/rounds/*"]
          Condition = {
            Null = { "s3:if-none-match" = "true" }
            Bool = { "s3:ObjectCreationOperation" = "true" }
          }
        },
        {
          Sid      = "ReadRoundsAndModels"
          Effect   = "Allow"
          Action   = ["s3:GetObject"]
          Resource = [for key in local.client_reads : "${var.bucket_arn}/${key}"]
        },
      ],
      local.use_object_key,
    )
  }
}

################################################################################
# CI: plans, ships the workers' code, runs rounds
################################################################################

# It does not create roles or change policies: who may do that may become anyone. A first apply, and one that changes
# more than the zip, is a person's.

resource "aws_iam_openid_connect_provider" "github" {
  count = var.create_github_oidc_provider ? 1 : 0

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

locals {
  github_repositories = toset(var.github_repository[*])
  github_issuer       = "token.actions.githubusercontent.com"
}

resource "aws_iam_role" "ci" {
  #checkov:skip=CKV_AWS_393:The subject is one repository and one branch, without wildcards; checkov cannot read each.key
  for_each = local.github_repositories

  name                 = "${var.name_prefix}-ci"
  description          = "GitHub Actions of ${each.key}, branch ${var.github_branch}"
  max_session_duration = 7200 # as long as the job in docs/examples/round.yml may last

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Federated = "arn:${local.partition}:iam::${local.account}:oidc-provider/${local.github_issuer}" }
      Action    = "sts:AssumeRoleWithWebIdentity"
      Condition = {
        StringEquals = {
          "${local.github_issuer}:aud" = "sts.amazonaws.com"
          # Pull requests, tags and other branches have another subject.
          "${local.github_issuer}:sub" = "repo:${each.key}:ref:refs/heads/${var.github_branch}"
        }
      }
    }]
  })

  depends_on = [aws_iam_openid_connect_provider.github]
}

resource "aws_iam_role_policy_attachment" "ci_orchestrator" {
  for_each = local.github_repositories

  role       = aws_iam_role.ci[each.key].name
  policy_arn = aws_iam_policy.orchestrator.arn
}

resource "aws_iam_role_policy" "ci_ship" {
  for_each = local.github_repositories

  name = "ship"
  role = aws_iam_role.ci[each.key].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "ShipCode"
          Effect   = "Allow"
          Action   = ["lambda:UpdateFunctionCode"]
          Resource = var.function_arns
        },
        {
          Sid    = "ReadOwnResources"
          Effect = "Allow"
          Action = [
            "s3:GetBucket*", "s3:ListBucket", "s3:GetAccelerateConfiguration", "s3:GetEncryptionConfiguration",
            "s3:GetLifecycleConfiguration", "s3:GetReplicationConfiguration",
            "sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:ListQueueTags",
            "lambda:GetFunction", "lambda:GetFunctionCodeSigningConfig", "lambda:ListVersionsByFunction",
            "iam:GetRole", "iam:GetRolePolicy", "iam:ListRolePolicies", "iam:ListAttachedRolePolicies",
            "iam:GetPolicy", "iam:GetPolicyVersion",
            "logs:ListTagsForResource", "cloudwatch:ListTagsForResource",
            "sns:GetTopicAttributes", "sns:ListTagsForResource",
          ]
          Resource = [
            # With the bucket of the access logs, which infra/bucket names so. Asking whether a bucket is there is
            # s3:ListBucket without a prefix.
            var.bucket_arn,
            "${var.bucket_arn}-logs",
            "arn:${local.partition}:sqs:${local.region}:${local.account}:${var.name_prefix}-*",
            "arn:${local.partition}:lambda:${local.region}:${local.account}:function:${var.name_prefix}-*",
            "arn:${local.partition}:iam::${local.account}:role/${var.name_prefix}-*",
            "arn:${local.partition}:iam::${local.account}:policy/${var.name_prefix}-*",
            "arn:${local.partition}:logs:${local.region}:${local.account}:log-group:/aws/lambda/${var.name_prefix}-*",
            "arn:${local.partition}:cloudwatch:${local.region}:${local.account}:alarm:${var.name_prefix}-*",
            "arn:${local.partition}:sns:${local.region}:${local.account}:${var.name_prefix}-*",
          ]
        },
        {
          # These read actions know no narrower resource than the account.
          Sid    = "ReadWhatHasNoName"
          Effect = "Allow"
          Action = [
            "lambda:GetEventSourceMapping", "lambda:ListTags", "logs:DescribeLogGroups", "cloudwatch:DescribeAlarms",
            "iam:GetOpenIDConnectProvider", "sns:GetSubscriptionAttributes",
          ]
          Resource = ["*"]
        },
      ],
      [
        for key_arn in var.kms_key_arn[*] : {
          Sid      = "ReadObjectKey"
          Effect   = "Allow"
          Action   = ["kms:DescribeKey", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListResourceTags"]
          Resource = [key_arn]
        }
      ],
      [
        for state in var.terraform_state[*] : {
          Sid      = "ReadAndWriteState"
          Effect   = "Allow"
          Action   = ["s3:GetObject", "s3:PutObject"]
          Resource = ["arn:${local.partition}:s3:::${state.bucket}/${state.key}"]
        }
      ],
      [
        for state in var.terraform_state[*] : {
          Sid      = "LockState"
          Effect   = "Allow"
          Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
          Resource = ["arn:${local.partition}:s3:::${state.bucket}/${state.key}.tflock"]
        }
      ],
      [
        for state in var.terraform_state[*] : {
          Sid      = "FindState"
          Effect   = "Allow"
          Action   = ["s3:ListBucket"]
          Resource = ["arn:${local.partition}:s3:::${state.bucket}"]
        }
      ],
    )
  })
}
