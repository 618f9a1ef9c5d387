variable "bucket" {
  description = "The environment's bucket; kms_key_arn is null with SSE-S3."
  type = object({
    arn         = string
    kms_key_arn = optional(string)
  })
}

variable "queue_arns" {
  description = "ARNs of the job queues that the worker takes jobs from; `?` stands for any character."
  type        = list(string)
}

variable "result_queue_arn" {
  description = "ARN of the environment's result queue."
  type        = string
}

variable "writes" {
  description = "What the worker writes under rounds/ besides parts of the global model: shards, norms (both when it averages shards), partials (when it adds up whole models)."
  type        = list(string)
}
