# The permissions that averaging needs, in Lambda or on a machine. This module deploys nothing.

locals {
  statements = concat(
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
          [for kind in var.writes : "${var.bucket.arn}/rounds/*/${kind}/*"],
        )
      },
      {
        # For a job that is delivered again: its part may exist already.
        Sid      = "FindParts"
        Effect   = "Allow"
        Action   = ["s3:ListMultipartUploadParts"]
        Resource = ["${var.bucket.arn}/models/*/global.safetensors"]
      },
      {
        # Without this permission S3 answers 403 instead of 404 for an object that does not exist, with its key as the
        # prefix. A worker can also list rounds/, all of which it may read, and nothing else.
        Sid       = "TellMissingFromForbidden"
        Effect    = "Allow"
        Action    = ["s3:ListBucket"]
        Resource  = [var.bucket.arn]
        Condition = { StringLike = { "s3:prefix" = ["rounds/*"] } }
      },
      {
        # A failed job becomes visible again after seconds, not after the queue's visibility timeout.
        Sid      = "TakeJobs"
        Effect   = "Allow"
        Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"]
        Resource = var.queue_arns
      },
      {
        Sid      = "SendResults"
        Effect   = "Allow"
        Action   = ["sqs:SendMessage"]
        Resource = [var.result_queue_arn]
      },
    ],
    [
      for key_arn in var.bucket.kms_key_arn[*] : {
        Sid      = "UseObjectKey"
        Effect   = "Allow"
        Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource = [key_arn]
      }
    ],
  )
}
