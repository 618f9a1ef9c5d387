# The inputs of an environment besides those that variables.tf has.

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

variable "package_path" {
  description = "Path of the functions' zip, relative to the directory that Terraform runs in."
  type        = string
  default     = "../../build/lambda-aws.zip"
}

variable "create_kms_key" {
  description = "Whether to create a KMS key if kms_key_arn is null: true or false."
  type        = bool
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
