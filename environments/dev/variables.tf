################################################################################
# Environment
################################################################################

variable "region" {
  description = "AWS region to deploy to, such as us-east-1."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be an AWS region, such as us-east-1."
  }
}

variable "name_prefix" {
  description = "Start of the names of everything deployed: 1 to 32 lower-case letters, digits and hyphens."
  type        = string
  default     = "fedagg-dev"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", var.name_prefix))
    error_message = "name_prefix must be 1 to 32 lower-case letters, digits and hyphens and start and end with a letter or digit."
  }
}

################################################################################
# Rounds
################################################################################

variable "shard_counts" {
  description = "Shard counts to deploy a lane for: one or more different whole numbers from 1 to 10000."
  type        = list(number)
  default     = [1, 4, 16]

  validation {
    condition     = length(var.shard_counts) > 0
    error_message = "shard_counts must name at least one shard count."
  }

  validation {
    condition     = alltrue([for shards in var.shard_counts : shards >= 1 && shards <= 10000 && floor(shards) == shards])
    error_message = "shard_counts must be whole numbers from 1 to 10000: a shard is a part of one multipart upload, and those have 10000 at most."
  }

  validation {
    condition     = length(distinct(var.shard_counts)) == length(var.shard_counts)
    error_message = "shard_counts must not name a shard count twice."
  }
}

variable "baselines" {
  description = "Whether to deploy lanes for lambda-FL and LIFL too, the trees that GradsSharding is compared with: true or false. Their functions hold the whole model; where function_memory_cap_mb forbids that, plan and apply say so and leave them out."
  type        = bool
  default     = false
}

variable "model_bytes" {
  description = "Bytes of the largest update that a client uploads, 1 to 10995116277760 (10 TiB)."
  type        = number
  default     = 500000000

  validation {
    condition     = var.model_bytes >= 1 && var.model_bytes <= 10995116277760 && floor(var.model_bytes) == var.model_bytes
    error_message = "model_bytes must be a whole number of bytes from 1 to 10995116277760 (10 TiB)."
  }
}

variable "clients" {
  description = "Most clients whose updates one round averages, 1 to 100000."
  type        = number
  default     = 20

  validation {
    condition     = var.clients >= 1 && var.clients <= 100000 && floor(var.clients) == var.clients
    error_message = "clients must be a whole number from 1 to 100000."
  }
}

################################################################################
# Functions
################################################################################

variable "package_path" {
  description = "Path of the functions' zip, from the directory that Terraform runs in."
  type        = string
  default     = "../../build/lambda-aws.zip"
}

variable "runtime" {
  description = "Lambda runtime, python3.11 to python3.14; the zip's numpy must be built for it."
  type        = string
  default     = "python3.13"

  validation {
    condition     = can(regex("^python3\\.1[1-4]$", var.runtime))
    error_message = "runtime must be python3.11, python3.12, python3.13 or python3.14."
  }
}

variable "architecture" {
  description = "Processor of the functions, arm64 or x86_64; the zip's numpy must be built for it. arm64 costs a fifth less."
  type        = string
  default     = "arm64"

  validation {
    condition     = contains(["arm64", "x86_64"], var.architecture)
    error_message = "architecture must be arm64 or x86_64."
  }
}

variable "function_memory_cap_mb" {
  description = "Most memory the account lets a function have, 128 to 10240 MB; new accounts have 3008."
  type        = number
  default     = 3008

  validation {
    condition     = var.function_memory_cap_mb >= 128 && var.function_memory_cap_mb <= 10240 && floor(var.function_memory_cap_mb) == var.function_memory_cap_mb
    error_message = "function_memory_cap_mb must be a whole number from 128 to 10240."
  }
}

variable "functions_enabled" {
  description = "Whether functions take jobs from the queues: true, or false where `orchestrator worker` does all of it."
  type        = bool
  default     = true
}

variable "maximum_concurrency" {
  description = "Invocations of one lane at the same time, 2 to 1000; null for as many as the lane has shards, within that range. Less than the account's quota, which is 10 in new accounts."
  type        = number
  default     = null

  validation {
    condition     = var.maximum_concurrency == null ? true : var.maximum_concurrency >= 2 && var.maximum_concurrency <= 1000 && floor(var.maximum_concurrency) == var.maximum_concurrency
    error_message = "maximum_concurrency must be null or a whole number from 2 to 1000."
  }
}

variable "memory_mb_override" {
  description = "Memory of every lane's function, 128 to 10240 MB, instead of what follows from clients; null to let it follow."
  type        = number
  default     = null

  validation {
    condition     = var.memory_mb_override == null ? true : var.memory_mb_override >= 128 && var.memory_mb_override <= 10240 && floor(var.memory_mb_override) == var.memory_mb_override
    error_message = "memory_mb_override must be null or a whole number from 128 to 10240."
  }
}

################################################################################
# Bucket
################################################################################

variable "bucket_name" {
  description = "Name of the bucket: 3 to 63 lower-case letters, digits and hyphens, unique among all AWS accounts; null for <name_prefix>-<account>-<region>."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_name == null || can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name must be null or 3 to 63 lower-case letters, digits and hyphens, starting and ending with a letter or digit."
  }
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects; null for SSE-S3, or for the key that create_kms_key makes."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[^:]+:kms:[^:]+:[0-9]{12}:key/.+$", var.kms_key_arn))
    error_message = "kms_key_arn must be null or a key's ARN: arn:aws:kms:<region>:<account>:key/<id>."
  }
}

################################################################################
# Alarms and access
################################################################################

variable "alarm_email" {
  description = "Address that alarms are sent to (AWS asks it for confirmation first); null for alarms that only show in CloudWatch."
  type        = string
  default     = null

  validation {
    condition     = var.alarm_email == null || can(regex("^[^@ ]+@[^@ ]+$", var.alarm_email))
    error_message = "alarm_email must be null or an e-mail address."
  }
}

variable "github_repository" {
  description = "GitHub repository, as owner/name, whose Actions may plan, ship code and run rounds; null for no CI role."
  type        = string
  default     = null

  validation {
    condition     = var.github_repository == null || can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "github_repository must be null or owner/name."
  }
}

variable "github_branch" {
  description = "The one branch whose workflows may take the CI role."
  type        = string
  default     = "main"

  validation {
    condition     = can(regex("^[A-Za-z0-9._/-]+$", var.github_branch))
    error_message = "github_branch must be a branch's name, without wildcards."
  }
}

variable "create_github_oidc_provider" {
  description = "Whether to make GitHub known to the account as an identity provider. An account has one: true in the first environment only."
  type        = bool
  default     = false
}

variable "terraform_state_bucket" {
  description = "Bucket of the Terraform state, the one in backend.hcl, for the CI role to plan with; null to leave it out."
  type        = string
  default     = null

  validation {
    condition     = var.terraform_state_bucket == null || can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.terraform_state_bucket))
    error_message = "terraform_state_bucket must be null or a bucket's name."
  }
}
