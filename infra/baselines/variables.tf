################################################################################
# Lanes
################################################################################

variable "name_prefix" {
  description = "Start of the lanes' names: 1 to 32 lower-case letters, digits and hyphens."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", var.name_prefix))
    error_message = "name_prefix must be 1 to 32 lower-case letters, digits and hyphens and start and end with a letter or digit."
  }
}

variable "enabled" {
  description = "Whether to deploy the baselines: true or false."
  type        = bool
}

variable "bucket" {
  description = "The environment's bucket."
  type = object({
    name = string
    arn  = string
  })
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the bucket's objects; null with SSE-S3."
  type        = string
  default     = null
}

variable "result_queue" {
  description = "The environment's queue for result messages."
  type = object({
    url = string
    arn = string
  })
}

################################################################################
# What they are sized for
################################################################################

variable "model_bytes" {
  description = "Bytes of the largest update that a client uploads, 1 to 10995116277760 (10 TiB)."
  type        = number

  validation {
    condition     = var.model_bytes >= 1 && var.model_bytes <= 10995116277760 && floor(var.model_bytes) == var.model_bytes
    error_message = "model_bytes must be a whole number of bytes from 1 to 10995116277760 (10 TiB)."
  }
}

variable "clients" {
  description = "Most clients whose updates one round averages, 1 to 100000."
  type        = number

  validation {
    condition     = var.clients >= 1 && var.clients <= 100000 && floor(var.clients) == var.clients
    error_message = "clients must be a whole number from 1 to 100000."
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

################################################################################
# Delivery
################################################################################

variable "functions_enabled" {
  description = "Whether functions take jobs from the queues: true, or false where `orchestrator worker` does all of it."
  type        = bool
  default     = true
}

variable "maximum_concurrency" {
  description = "Invocations at the same time, 2 to 1000; null for as many as there are shards, within that range."
  type        = number
  default     = null

  validation {
    condition     = var.maximum_concurrency == null ? true : var.maximum_concurrency >= 2 && var.maximum_concurrency <= 1000 && floor(var.maximum_concurrency) == var.maximum_concurrency
    error_message = "maximum_concurrency must be null or a whole number from 2 to 1000."
  }
}

variable "max_receive_count" {
  description = "Deliveries after which a job goes to the dead-letter queue, 1 to 1000; AWS advises at least 5."
  type        = number
  default     = 5

  validation {
    condition     = var.max_receive_count >= 1 && var.max_receive_count <= 1000 && floor(var.max_receive_count) == var.max_receive_count
    error_message = "max_receive_count must be a whole number from 1 to 1000."
  }
}

################################################################################
# Functions
################################################################################

variable "package_path" {
  description = "Path of the function's zip, from the directory that Terraform runs in."
  type        = string
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
  description = "Processor of the function, arm64 or x86_64; the zip's numpy must be built for it. arm64 costs a fifth less."
  type        = string
  default     = "arm64"

  validation {
    condition     = contains(["arm64", "x86_64"], var.architecture)
    error_message = "architecture must be arm64 or x86_64."
  }
}

variable "log_level" {
  description = "Level of the function's log: DEBUG, INFO, WARNING or ERROR."
  type        = string
  default     = "INFO"

  validation {
    condition     = contains(["DEBUG", "INFO", "WARNING", "ERROR"], var.log_level)
    error_message = "log_level must be DEBUG, INFO, WARNING or ERROR."
  }
}

variable "log_retention_days" {
  description = "Days for which the function's log is kept: one of CloudWatch's periods from 1 to 3653."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days must be one of CloudWatch's periods: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653."
  }
}
