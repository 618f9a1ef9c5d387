################################################################################
# Bucket
################################################################################

variable "name" {
  description = "Name of the bucket: 3 to 63 lower-case letters, digits and hyphens, unique among all AWS accounts."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 63 lower-case letters, digits and hyphens and start and end with a letter or digit."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes the objects too. For environments whose models nobody needs."
  type        = bool
  default     = false
}

################################################################################
# Encryption
################################################################################

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects; null for SSE-S3, or for the key that create_kms_key makes."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[^:]+:kms:[^:]+:[0-9]{12}:key/.+$", var.kms_key_arn))
    error_message = "kms_key_arn must be a key's ARN: arn:aws:kms:<region>:<account>:key/<id>."
  }
}

variable "create_kms_key" {
  description = "Whether to create a KMS key for the objects (about 1 USD a month). Not together with kms_key_arn."
  type        = bool
  default     = false

  validation {
    condition     = !(var.create_kms_key && var.kms_key_arn != null)
    error_message = "Give a key in kms_key_arn or ask for one with create_kms_key, not both."
  }
}

################################################################################
# Lifecycle
################################################################################

variable "round_retention_days" {
  description = "Days after which the objects under rounds/ (updates, manifests, shards) expire, 1 to 3650."
  type        = number
  default     = 7

  validation {
    condition     = var.round_retention_days >= 1 && var.round_retention_days <= 3650 && floor(var.round_retention_days) == var.round_retention_days
    error_message = "round_retention_days must be a whole number from 1 to 3650."
  }
}

variable "noncurrent_version_days" {
  description = "Days for which replaced or deleted versions of any object are kept, 1 to 3650; under rounds/ it is 1."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_version_days >= 1 && var.noncurrent_version_days <= 3650 && floor(var.noncurrent_version_days) == var.noncurrent_version_days
    error_message = "noncurrent_version_days must be a whole number from 1 to 3650."
  }
}

variable "incomplete_upload_days" {
  description = "Days after which a multipart upload that nobody completed is aborted, 1 to 365. More than a round can last."
  type        = number
  default     = 7

  validation {
    condition     = var.incomplete_upload_days >= 1 && var.incomplete_upload_days <= 365 && floor(var.incomplete_upload_days) == var.incomplete_upload_days
    error_message = "incomplete_upload_days must be a whole number from 1 to 365."
  }
}

################################################################################
# Access logs
################################################################################

variable "access_logs" {
  description = "Whether S3 logs every request for an object, to a second bucket named <name>-logs."
  type        = bool
  default     = false
}

variable "access_log_retention_days" {
  description = "Days after which access logs are deleted: a whole number from 1."
  type        = number
  default     = 90

  validation {
    condition     = var.access_log_retention_days >= 1 && floor(var.access_log_retention_days) == var.access_log_retention_days
    error_message = "access_log_retention_days must be a whole number from 1."
  }
}
