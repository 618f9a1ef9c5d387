################################################################################
# What is accessed
################################################################################

variable "name_prefix" {
  description = "Start of the names of everything in the environment: 1 to 32 lower-case letters, digits and hyphens."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]{1,32}$", var.name_prefix))
    error_message = "name_prefix must be 1 to 32 lower-case letters, digits and hyphens."
  }
}

variable "bucket_arn" {
  description = "ARN of the environment's bucket."
  type        = string
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the bucket's objects; null with SSE-S3."
  type        = string
  default     = null
}

variable "result_queue_arn" {
  description = "ARN of the environment's result queue."
  type        = string
}

variable "queue_arns" {
  description = "ARNs of the lanes' job queues."
  type        = list(string)
}

variable "dead_letter_queue_arns" {
  description = "ARNs of the lanes' dead-letter queues."
  type        = list(string)
}

variable "function_arns" {
  description = "ARNs of the lanes' functions."
  type        = list(string)
}

################################################################################
# CI
################################################################################

variable "github_repository" {
  description = "GitHub repository, as owner/name, whose Actions may plan, ship code and run rounds; null for no CI role."
  type        = string
  default     = null

  validation {
    # No wildcard can get in: the subject is compared as a whole, and only these characters are let through.
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

variable "terraform_state" {
  description = "Bucket and key of the environment's Terraform state, for the CI role to plan with; null to leave it out."
  type = object({
    bucket = string
    key    = string
  })
  default = null
}
