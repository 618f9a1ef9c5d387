# The inputs of an environment. infra/aggregator receives all of them; it has the ranges, the checks, and the defaults of
# the inputs that are null here.

################################################################################
# Environment
################################################################################

variable "environment" {
  description = "Name of the environment."
  type        = string
}

variable "name_prefix" {
  description = "Start of the names of everything deployed."
  type        = string
}

variable "region" {
  description = "AWS region to deploy to, such as us-east-1."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be an AWS region, such as us-east-1."
  }
}

variable "allowed_account_ids" {
  description = "Accounts that may be deployed to; with the credentials of another account, Terraform stops. Null for any account."
  type        = list(string)
  default     = null

  validation {
    condition     = var.allowed_account_ids == null ? true : alltrue([for id in var.allowed_account_ids : can(regex("^[0-9]{12}$", id))])
    error_message = "allowed_account_ids must be null or account ids of 12 digits."
  }
}

variable "tags" {
  description = "Tags of everything deployed, besides `project` and `environment`."
  type        = map(string)
  default     = {}
}

################################################################################
# Rounds
################################################################################

variable "shard_counts" {
  description = "Shard counts to deploy a lane for."
  type        = list(number)
}

variable "baselines" {
  description = "Whether to deploy lanes for lambda-FL and LIFL too: true or false."
  type        = bool
  default     = null
}

variable "model_bytes" {
  description = "Size of the largest update that a client uploads, bytes."
  type        = number
}

variable "clients" {
  description = "The largest number of clients whose updates one round averages."
  type        = number
}

################################################################################
# Functions
################################################################################

variable "package_path" {
  description = "Path of the functions' zip, relative to the directory that Terraform runs in."
  type        = string
  default     = "../../build/lambda-aws.zip"
}

variable "runtime" {
  description = "Lambda runtime; the zip's numpy must be built for it."
  type        = string
  default     = null
}

variable "cpu_architecture" {
  description = "Processor of the functions; the zip's numpy must be built for it."
  type        = string
  default     = null
}

variable "function_memory_cap_mb" {
  description = "The most memory that the account lets a function have, MB."
  type        = number
  default     = null
}

variable "memory_mb_override" {
  description = "Memory of the functions that average shards, MB, instead of the memory that follows from clients."
  type        = number
  default     = null
}

variable "functions_enabled" {
  description = "Whether functions take jobs: true, or false if `orchestrator worker` processes all jobs."
  type        = bool
  default     = null
}

variable "maximum_concurrency" {
  description = "The most invocations of one lane at the same time; null for one per shard."
  type        = number
  default     = null
}

variable "check_concurrency_quota" {
  description = "Whether to refuse lanes that run more functions at once than the account's quota: true or false."
  type        = bool
  default     = null
}

variable "max_receive_count" {
  description = "Deliveries after which a job goes to the dead-letter queue."
  type        = number
  default     = null
}

variable "log_level" {
  description = "Level of the functions' logs."
  type        = string
}

variable "log_retention_days" {
  description = "Days for which the functions' logs are kept."
  type        = number
}

################################################################################
# Bucket
################################################################################

variable "bucket_name" {
  description = "Name of the bucket; null for <name_prefix>-<account>-<region>."
  type        = string
  default     = null
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes the bucket's objects too: true or false."
  type        = bool
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects; null for none, or for the one of create_kms_key."
  type        = string
  default     = null
}

variable "create_kms_key" {
  description = "Whether to create a KMS key if kms_key_arn is null: true or false."
  type        = bool
}

variable "access_logs" {
  description = "Whether S3 logs every request for an object, to a second bucket: true or false."
  type        = bool
}

variable "access_log_days" {
  description = "Days after which access logs expire."
  type        = number
  default     = null
}

variable "round_retention_days" {
  description = "Days after which the objects under rounds/ expire."
  type        = number
}

variable "noncurrent_version_days" {
  description = "Days for which replaced or deleted versions of objects are kept."
  type        = number
}

variable "incomplete_upload_days" {
  description = "Days after which a multipart upload that nobody completed is aborted."
  type        = number
  default     = null
}

################################################################################
# Alarms and access
################################################################################

variable "alarms" {
  description = "Whether the lanes have alarms: true or false."
  type        = bool
  default     = null
}

variable "alarm_email" {
  description = "Address that alarms are sent to; null for none."
  type        = string
  default     = null
}

variable "iam_path" {
  description = "Path of the roles and policies."
  type        = string
  default     = null
}

variable "permissions_boundary" {
  description = "ARN of the policy that bounds the permissions of every role; null for none."
  type        = string
  default     = null
}

variable "github_repository" {
  description = "GitHub repository, as owner/name, whose Actions get the CI role; null for no role."
  type        = string
  default     = null
}

variable "github_ids" {
  description = "Numeric ids of the owner and the repository, if the repository's tokens name them; null if they do not."
  type        = object({ owner = number, repository = number })
  default     = null
}

variable "github_branch" {
  description = "The one branch whose workflows may take the CI role."
  type        = string
  default     = null
}

variable "create_github_oidc_provider" {
  description = "Whether to register GitHub with the account as an identity provider: true in one environment of the account."
  type        = bool
  default     = null
}

variable "terraform_state_bucket" {
  description = "Bucket of the Terraform state, as in backend.hcl, whose outputs the CI role may then read; null for no access to the state."
  type        = string
  default     = null
}

variable "terraform_state_key" {
  description = "Key of the Terraform state, as in backend.hcl."
  type        = string
  default     = null
}
