# The inputs that an environment declares with another default, or computes from its own inputs.

variable "endpoint_url" {
  description = "URL of the AWS emulator that the environment is deployed to, http or https, without a path; null on AWS."
  type        = string
  default     = null

  validation {
    condition     = var.endpoint_url == null || can(regex("^https?://[^/]+$", var.endpoint_url))
    error_message = "endpoint_url must be null or a URL without a path, such as http://127.0.0.1:4566."
  }
}

variable "package_path" {
  description = "Path of the functions' zip, relative to the directory that Terraform runs in."
  type        = string
}

variable "create_kms_key" {
  description = "Whether to create a KMS key for the objects (about 1 USD a month): true or false. Not together with kms_key_arn."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = !(var.create_kms_key && var.kms_key_arn != null)
    error_message = "Give a key in kms_key_arn or ask for one with create_kms_key, not both."
  }
}

variable "terraform_state" {
  description = "Bucket and key of the environment's Terraform state, whose outputs the CI role may then read, as rounds need; null for no access to the state."
  type = object({
    bucket = string
    key    = string
  })
  default = null

  validation {
    condition     = var.terraform_state == null ? true : can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.terraform_state.bucket))
    error_message = "terraform_state must be null or name a bucket and a key."
  }
}
