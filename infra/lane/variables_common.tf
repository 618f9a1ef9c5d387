# The inputs that are the same for every lane of an environment. infra/baselines links to this file.

variable "bucket" {
  description = "The environment's bucket; kms_key_arn is null with SSE-S3."
  type = object({
    name        = string
    arn         = string
    kms_key_arn = optional(string)
  })
}

variable "result_queue" {
  description = "The environment's queue for result messages."
  type = object({
    url = string
    arn = string
  })
}

variable "sizing" {
  description = "What the function of each lane is sized for; see infra/sizing. memory_mb_override does not apply to trees."
  type = object({
    model_bytes            = number
    clients                = number
    function_memory_cap_mb = number
    memory_mb_override     = optional(number)
  })
}

variable "function" {
  description = "Code and log of the functions. package_path is the zip, relative to the directory that Terraform runs in; its numpy must be built for runtime and cpu_architecture."
  type = object({
    package_path       = string
    runtime            = string
    cpu_architecture   = string
    log_level          = string
    log_retention_days = number
  })
}

variable "delivery" {
  description = "How jobs reach the functions: whether they take jobs, how many of one lane at the same time (null for no limit: one per shard or leaf, at most 1000), and after how many deliveries a job goes to the dead-letter queue."
  type = object({
    functions_enabled   = bool
    maximum_concurrency = optional(number)
    max_receive_count   = number
  })
}

variable "iam" {
  description = "Path of the roles, and the policy that bounds the permissions of roles; null for none."
  type = object({
    path                 = optional(string, "/")
    permissions_boundary = optional(string)
  })
  default = {}
}
