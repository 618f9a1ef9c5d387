variable "name" {
  description = "Name of the queue, the function and the role, at most 64 characters."
  type        = string
}

variable "topology" {
  description = "How the lane's rounds are averaged: grads-sharding (a function averages a shard), lambda-fl or lifl (it adds up whole models)."
  type        = string
  default     = "grads-sharding"
}

variable "shards" {
  description = "Shards that the lane's rounds are cut into, 1 to 10000. A tree averages whole models: 1."
  type        = number
  default     = 1
}

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
  description = "What the function is sized for; see infra/sizing."
  type = object({
    model_bytes            = number
    clients                = number
    function_memory_cap_mb = number
    memory_mb_override     = optional(number)
  })
}

variable "function" {
  description = "Code and log of the function. package_path is the zip, relative to the directory that Terraform runs in; its numpy must be built for runtime and cpu_architecture."
  type = object({
    package_path       = string
    runtime            = string
    cpu_architecture   = string
    log_level          = string
    log_retention_days = number
  })
}

variable "delivery" {
  description = "How jobs reach the function: whether it takes jobs at all, how many at the same time (null for no limit: one per shard or leaf, at most 1000), and after how many deliveries a job goes to the dead-letter queue."
  type = object({
    functions_enabled   = bool
    maximum_concurrency = optional(number)
    max_receive_count   = number
  })
}

variable "iam" {
  description = "Path of the role, and the policy that bounds the permissions of roles; null for none."
  type = object({
    path                 = optional(string, "/")
    permissions_boundary = optional(string)
  })
  default = {}
}
