# The inputs that an environment passes on as they are. environments/shared/variables.tf links to this file.

################################################################################
# Environment
################################################################################

variable "environment" {
  description = "Name of the environment: 1 to 16 lower-case letters, digits and hyphens."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]{1,16}$", var.environment))
    error_message = "environment must be 1 to 16 lower-case letters, digits and hyphens."
  }
}

variable "name_prefix" {
  description = "Start of the names of everything deployed: 1 to 29 lower-case letters, digits and hyphens."
  type        = string

  validation {
    # The longest name is that of the bucket of the access logs, <name_prefix>-<account>-<region>-logs, of 63 characters at most.
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,27}[a-z0-9])?$", var.name_prefix))
    error_message = "name_prefix must be 1 to 29 lower-case letters, digits and hyphens and start and end with a letter or digit."
  }
}

################################################################################
# Rounds
################################################################################

variable "shard_counts" {
  description = "Shard counts to deploy a lane for: one or more different whole numbers from 1 to 10000."
  type        = list(number)

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
  description = "Whether to deploy lanes for lambda-FL and LIFL too, the trees that GradsSharding is compared with: true or false. Their functions hold the whole model; if no function can hold it, plan and apply leave the tree out and say why."
  type        = bool
  default     = false
  nullable    = false
}

variable "model_bytes" {
  description = "Bytes of the largest update that a client uploads, 1 to 10995116277760 (10 TiB)."
  type        = number

  validation {
    condition     = var.model_bytes >= 1 && var.model_bytes <= 10995116277760 && floor(var.model_bytes) == var.model_bytes
    error_message = "model_bytes must be a whole number of bytes from 1 to 10995116277760 (10 TiB)."
  }
}

variable "clients" {
  description = "The largest number of clients whose updates one round averages, 1 to 100000."
  type        = number

  validation {
    condition     = var.clients >= 1 && var.clients <= 100000 && floor(var.clients) == var.clients
    error_message = "clients must be a whole number from 1 to 100000."
  }
}

################################################################################
# Functions
################################################################################

variable "runtime" {
  description = "Lambda runtime, python3.11, python3.12 or python3.13; the zip's numpy must be built for it."
  type        = string
  default     = "python3.13"
  nullable    = false

  validation {
    # Version 5.100 of the provider refuses python3.14, which Lambda has.
    condition     = can(regex("^python3\\.1[1-3]$", var.runtime))
    error_message = "runtime must be python3.11, python3.12 or python3.13."
  }
}

variable "cpu_architecture" {
  description = "Processor of the functions, arm64 or x86_64; the zip's numpy must be built for it. arm64 costs 20 % less."
  type        = string
  default     = "arm64"
  nullable    = false

  validation {
    condition     = contains(["arm64", "x86_64"], var.cpu_architecture)
    error_message = "cpu_architecture must be arm64 or x86_64."
  }
}

variable "function_memory_cap_mb" {
  description = "The most memory that the account lets a function have, 128 to 10240 MB; new accounts have 3008."
  type        = number
  default     = 3008
  nullable    = false

  validation {
    condition     = var.function_memory_cap_mb >= 128 && var.function_memory_cap_mb <= 10240 && floor(var.function_memory_cap_mb) == var.function_memory_cap_mb
    error_message = "function_memory_cap_mb must be a whole number from 128 to 10240."
  }
}

variable "memory_mb_override" {
  description = "Memory of the functions that average shards, 128 to 10240 MB, instead of the memory that follows from clients; null for the latter."
  type        = number
  default     = null

  validation {
    condition     = var.memory_mb_override == null ? true : var.memory_mb_override >= 128 && var.memory_mb_override <= 10240 && floor(var.memory_mb_override) == var.memory_mb_override
    error_message = "memory_mb_override must be null or a whole number from 128 to 10240."
  }
}

variable "log_level" {
  description = "Level of the functions' logs: DEBUG, INFO, WARNING or ERROR."
  type        = string
  default     = "INFO"
  nullable    = false

  validation {
    condition     = contains(["DEBUG", "INFO", "WARNING", "ERROR"], var.log_level)
    error_message = "log_level must be DEBUG, INFO, WARNING or ERROR."
  }
}

variable "log_retention_days" {
  description = "Days for which the functions' logs are kept: one of CloudWatch's periods from 1 to 3653."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days must be one of CloudWatch's periods: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653."
  }
}

################################################################################
# Delivery
################################################################################

variable "functions_enabled" {
  description = "Whether functions take jobs from the queues: true, or false if `orchestrator worker` processes all jobs."
  type        = bool
  default     = true
  nullable    = false
}

variable "maximum_concurrency" {
  description = "The most invocations of one lane at the same time, 2 to 1000; null for no limit: as many as the lane has shards, at most 1000. Set it where the account's quota is lower, which is 10 in new accounts. With a limit, Lambda polls an idle queue more often."
  type        = number
  default     = null

  validation {
    condition     = var.maximum_concurrency == null ? true : var.maximum_concurrency >= 2 && var.maximum_concurrency <= 1000 && floor(var.maximum_concurrency) == var.maximum_concurrency
    error_message = "maximum_concurrency must be null or a whole number from 2 to 1000."
  }
}

variable "check_concurrency_quota" {
  description = "Whether to refuse lanes that run more functions at once than the account's quota: true, or false on an emulator, or if servicequotas:GetServiceQuota is not allowed."
  type        = bool
  default     = true
  nullable    = false
}

variable "max_receive_count" {
  description = "Deliveries after which a job goes to the dead-letter queue, 1 to 1000; AWS recommends at least 5."
  type        = number
  default     = 5
  nullable    = false

  validation {
    condition     = var.max_receive_count >= 1 && var.max_receive_count <= 1000 && floor(var.max_receive_count) == var.max_receive_count
    error_message = "max_receive_count must be a whole number from 1 to 1000."
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

  validation {
    condition     = !var.access_logs || length(coalesce(var.bucket_name, "none")) <= 58
    error_message = "bucket_name must have at most 58 characters with access_logs: the bucket of the logs is named <bucket_name>-logs."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes the bucket's objects too: true or false. With false, a plan that would destroy the bucket or its KMS key is refused."
  type        = bool
  default     = false
  nullable    = false
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

variable "round_retention_days" {
  description = "Days after which the objects under rounds/ (updates, manifests, shards) expire, 1 to 3650."
  type        = number
  default     = 7
  nullable    = false

  validation {
    condition     = var.round_retention_days >= 1 && var.round_retention_days <= 3650 && floor(var.round_retention_days) == var.round_retention_days
    error_message = "round_retention_days must be a whole number from 1 to 3650."
  }
}

variable "noncurrent_version_days" {
  description = "Days for which replaced or deleted versions of any object are kept, 1 to 3650; under rounds/ it is 1."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = var.noncurrent_version_days >= 1 && var.noncurrent_version_days <= 3650 && floor(var.noncurrent_version_days) == var.noncurrent_version_days
    error_message = "noncurrent_version_days must be a whole number from 1 to 3650."
  }
}

variable "incomplete_upload_days" {
  description = "Days after which a multipart upload that nobody completed is aborted, 1 to 365. More than a round can last."
  type        = number
  default     = 7
  nullable    = false

  validation {
    condition     = var.incomplete_upload_days >= 1 && var.incomplete_upload_days <= 365 && floor(var.incomplete_upload_days) == var.incomplete_upload_days
    error_message = "incomplete_upload_days must be a whole number from 1 to 365."
  }
}

variable "access_logs" {
  description = "Whether S3 logs every request for an object, to a second bucket: true or false."
  type        = bool
  default     = false
  nullable    = false
}

variable "access_log_days" {
  description = "Days after which access logs expire, 1 to 3650."
  type        = number
  default     = 90
  nullable    = false

  validation {
    condition     = var.access_log_days >= 1 && var.access_log_days <= 3650 && floor(var.access_log_days) == var.access_log_days
    error_message = "access_log_days must be a whole number from 1 to 3650."
  }
}

################################################################################
# Alarms and access
################################################################################

variable "alarms" {
  description = "Whether the lanes have alarms: true, or false on an emulator."
  type        = bool
  default     = true
  nullable    = false
}

variable "alarm_email" {
  description = "Address that alarms are sent to (AWS asks it for confirmation first); null for alarms that are only shown in CloudWatch."
  type        = string
  default     = null

  validation {
    condition     = var.alarm_email == null || can(regex("^[^@ ]+@[^@ ]+$", var.alarm_email))
    error_message = "alarm_email must be null or an e-mail address."
  }
}

variable "iam_path" {
  description = "Path of the roles and policies: begins and ends with a slash, at most 512 characters."
  type        = string
  default     = "/"
  nullable    = false

  validation {
    condition     = can(regex("^/([!-~]+/)?$", var.iam_path)) && length(var.iam_path) <= 512
    error_message = "iam_path must begin and end with a slash, such as /federation/."
  }
}

variable "permissions_boundary" {
  description = "ARN of the policy that bounds the permissions of every role; null for none."
  type        = string
  default     = null

  validation {
    condition     = var.permissions_boundary == null || can(regex("^arn:[^:]+:iam::([0-9]{12}|aws):policy/.+$", var.permissions_boundary))
    error_message = "permissions_boundary must be null or a policy's ARN: arn:aws:iam::<account>:policy/<name>."
  }
}

variable "github_repository" {
  description = "GitHub repository, as owner/name, whose Actions may ship code and run rounds; null for no CI role."
  type        = string
  default     = null

  validation {
    # Only these characters are allowed, and the subject is compared as a whole, so that no wildcard takes effect.
    condition     = var.github_repository == null || can(regex("^[A-Za-z0-9_-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "github_repository must be null or owner/name."
  }
}

variable "github_ids" {
  description = "Numeric ids of the owner and the repository, which GitHub adds to the subject of tokens for repositories that were created, renamed or transferred since 2026-07-15 or that opted in; null for a repository whose subject has names only. `gh api repos/OWNER/NAME --jq '.owner.id, .id'` prints both."
  type = object({
    owner      = number
    repository = number
  })
  default = null

  validation {
    condition = var.github_ids == null ? true : var.github_repository != null && alltrue([
      for id in [var.github_ids.owner, var.github_ids.repository] : id >= 1 && floor(id) == id
    ])
    error_message = "github_ids must be null or two whole numbers of at least 1, and belong to a github_repository."
  }
}

variable "github_branch" {
  description = "The one branch whose workflows may take the CI role: its name, without wildcards."
  type        = string
  default     = "main"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9._/-]+$", var.github_branch))
    error_message = "github_branch must be a branch's name, without wildcards."
  }
}

variable "create_github_oidc_provider" {
  description = "Whether to register GitHub with the account as an identity provider: true or false. An account has one: true in the first environment only."
  type        = bool
  default     = false
  nullable    = false
}
