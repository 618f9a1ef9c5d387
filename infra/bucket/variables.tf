variable "name" {
  description = "Name of the bucket, unique among all AWS accounts."
  type        = string
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes the objects too: true or false. With false, a plan that would destroy the bucket or its KMS key is refused."
  type        = bool
  default     = false
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects; null for SSE-S3, or for the key that create_kms_key makes."
  type        = string
  default     = null
}

variable "create_kms_key" {
  description = "Whether to create a KMS key for the objects: true or false. Not together with kms_key_arn."
  type        = bool
  default     = false
}

variable "retention" {
  description = "Days after which the objects under rounds/ expire, for which replaced or deleted versions of other objects are kept, after which a multipart upload that nobody completed is aborted, and after which access logs expire."
  type = object({
    round_retention_days    = number
    noncurrent_version_days = number
    incomplete_upload_days  = number
    access_log_days         = optional(number, 90)
  })
}

variable "access_logs" {
  description = "Whether S3 logs every request for an object, to a second bucket named <name>-logs: true or false."
  type        = bool
  default     = false
}
