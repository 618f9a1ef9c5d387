data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
  region    = data.aws_region.current.name

  # Queues and functions are named by patterns, so that a policy stays below IAM's 6,144 characters with any number of lanes.
  arn_of = {
    for service in ["lambda", "sqs"] : service => "arn:${local.partition}:${service}:${local.region}:${local.account}"
  }
  queue_arns             = [for name in var.lane_names : "${local.arn_of.sqs}:${name}"]
  dead_letter_queue_arns = [for name in var.lane_names : "${local.arn_of.sqs}:${name}-dead-letters"]

  use_object_key = [
    for key_arn in var.bucket.kms_key_arn[*] : {
      Sid      = "UseObjectKey"
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource = [key_arn]
    }
  ]
}

################################################################################
# Orchestrator: runs rounds
################################################################################

resource "aws_iam_policy" "orchestrator" {
  name        = "${var.name_prefix}-orchestrator"
  path        = var.iam.path
  description = "Runs rounds: reads updates, sends jobs, receives results, publishes global models"

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "ReadAndWriteObjects"
          Effect   = "Allow"
          Action   = ["s3:GetObject", "s3:PutObject"]
          Resource = ["${var.bucket.arn}/rounds/*", "${var.bucket.arn}/models/*"]
        },
        {
          # Shards that were too small to be parts of an upload, after they are assembled, and trees' partial sums. The
          # orchestrator deletes nothing else.
          Sid      = "DeleteShards"
          Effect   = "Allow"
          Action   = ["s3:DeleteObject"]
          Resource = ["${var.bucket.arn}/rounds/*/shards/*", "${var.bucket.arn}/rounds/*/partials/*"]
        },
        {
          # Creating and completing an upload is s3:PutObject.
          Sid      = "WatchAndAbortUploads"
          Effect   = "Allow"
          Action   = ["s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"]
          Resource = ["${var.bucket.arn}/rounds/*", "${var.bucket.arn}/models/*"]
        },
        {
          Sid      = "ListObjects"
          Effect   = "Allow"
          Action   = ["s3:ListBucket"]
          Resource = [var.bucket.arn]
          # S3 also checks this permission, with an object's key as the prefix, before it answers that the object is missing.
          Condition = { StringLike = { "s3:prefix" = ["rounds/*", "models/*"] } }
        },
        {
          # To find uploads of orchestrators that stopped before they recorded them. IAM cannot restrict this to a prefix.
          Sid      = "ListUploads"
          Effect   = "Allow"
          Action   = ["s3:ListBucketMultipartUploads"]
          Resource = [var.bucket.arn]
        },
        {
          Sid      = "SendJobs"
          Effect   = "Allow"
          Action   = ["sqs:SendMessage", "sqs:GetQueueAttributes"]
          Resource = local.queue_arns
        },
        {
          # Results of other rounds are returned to the queue by making them visible again.
          Sid      = "ReceiveResults"
          Effect   = "Allow"
          Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"]
          Resource = [var.result_queue_arn]
        },
        {
          # Failed jobs of other rounds are returned as well; those of a round that continues are queued again and deleted.
          Sid      = "LookThroughFailedJobs"
          Effect   = "Allow"
          Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"]
          Resource = local.dead_letter_queue_arns
        },
      ],
      local.use_object_key,
    )
  })
}

################################################################################
# Workers: average outside Lambda
################################################################################

module "worker" {
  source = "../worker"

  bucket           = var.bucket
  queue_arns       = local.queue_arns
  result_queue_arn = var.result_queue_arn
  writes           = ["shards", "norms", "partials"]
}

# For `orchestrator worker` on a machine. It takes jobs from every lane, as the functions do from their own.
resource "aws_iam_policy" "worker" {
  name        = "${var.name_prefix}-worker"
  path        = var.iam.path
  description = "Averages outside Lambda: takes jobs from the lanes' queues, reads updates, writes shards, sends results"

  policy = jsonencode({ Version = "2012-10-17", Statement = module.worker.statements })
}

################################################################################
# Clients: upload an update, download a global model
################################################################################

locals {
  # A policy variable that IAM replaces by the value of the calling role's or user's tag `client`.
  own_update = "rounds/*/updates/$${aws:PrincipalTag/client}.safetensors"

  # A client reads the description of the round, its own update and the models. It reads neither other clients' updates
  # nor the manifest, which names the clients and their example counts, and it lists nothing.
  client_reads = ["rounds/*/round.json", local.own_update, "models/*"]

  client_policy = {
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "UploadOwnUpdate"
          Effect   = "Allow"
          Action   = ["s3:PutObject", "s3:AbortMultipartUpload"]
          Resource = ["${var.bucket.arn}/${local.own_update}"]
        },
        {
          # Updates are write-once. A multipart upload is checked when it is completed; its parts cannot be checked.
          Sid      = "NeverReplaceAnUpdate"
          Effect   = "Deny"
          Action   = ["s3:PutObject"]
          Resource = ["${var.bucket.arn}/rounds/*"]
          Condition = {
            Null = { "s3:if-none-match" = "true" }
            Bool = { "s3:ObjectCreationOperation" = "true" }
          }
        },
        {
          Sid      = "ReadRoundsAndModels"
          Effect   = "Allow"
          Action   = ["s3:GetObject"]
          Resource = [for key in local.client_reads : "${var.bucket.arn}/${key}"]
        },
      ],
      local.use_object_key,
    )
  }
}

################################################################################
# CI: ships the functions' code, runs rounds
################################################################################

# The CI role neither applies nor writes Terraform's state. Creating roles or changing policies would let it grant itself any
# permission, and a state that names another provider makes the next person's `terraform init` run that provider. A person
# applies; CI replaces the functions' code and reads the outputs that rounds need.

resource "aws_iam_openid_connect_provider" "github" {
  count = var.ci.create_github_oidc_provider ? 1 : 0

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

locals {
  github_repositories = toset(var.ci.github_repository[*])
  github_issuer       = "token.actions.githubusercontent.com"

  # owner/name, or owner@ID/name@ID. A name that somebody else takes over has other ids.
  github_subject_names = {
    for repository in local.github_repositories : repository => join("/", [
      for index, name in split("/", repository) :
      var.ci.github_ids == null ? name : "${name}@${[var.ci.github_ids.owner, var.ci.github_ids.repository][index]}"
    ])
  }
}

resource "aws_iam_role" "ci" {
  #checkov:skip=CKV_AWS_393:The subject is one repository and one branch, without wildcards; checkov cannot read each.key
  for_each = local.github_repositories

  name                 = "${var.name_prefix}-ci"
  path                 = var.iam.path
  permissions_boundary = var.iam.permissions_boundary
  description          = "GitHub Actions of ${each.key}, branch ${var.ci.github_branch}"
  max_session_duration = 7200 # the time limit of the job in docs/examples/round.yml

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
          "${local.github_issuer}:sub" = "repo:${local.github_subject_names[each.key]}:ref:refs/heads/${var.ci.github_branch}"
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
          Action   = ["lambda:UpdateFunctionCode", "lambda:GetFunctionConfiguration"]
          Resource = [for name in var.lane_names : "${local.arn_of.lambda}:function:${name}"]
        },
      ],
      flatten([
        for state in var.ci.terraform_state[*] : [
          {
            Sid      = "ReadState"
            Effect   = "Allow"
            Action   = ["s3:GetObject"]
            Resource = ["arn:${local.partition}:s3:::${state.bucket}/${state.key}"]
          },
          {
            # Terraform looks for the state, and lists workspaces when it is initialised.
            Sid       = "FindState"
            Effect    = "Allow"
            Action    = ["s3:ListBucket"]
            Resource  = ["arn:${local.partition}:s3:::${state.bucket}"]
            Condition = { StringLike = { "s3:prefix" = [state.key, "env:/*"] } }
          },
        ]
      ]),
    )
  })
}
