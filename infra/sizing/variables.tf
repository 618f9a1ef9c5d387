variable "topology" {
  description = "How rounds of the lane are averaged: grads-sharding, lambda-fl or lifl."
  type        = string
}

variable "shards" {
  description = "Shards that the lane's rounds are cut into, 1 to 10000. A tree averages whole models: 1."
  type        = number
}

variable "model_bytes" {
  description = "Bytes of the largest update that a client uploads."
  type        = number
}

variable "clients" {
  description = "The largest number of clients whose updates one round averages."
  type        = number
}

variable "function_memory_cap_mb" {
  description = "The most memory that the account lets a function have, MB."
  type        = number
}

variable "memory_mb_override" {
  description = "Memory of the function, MB, instead of that of the rule; null for that of the rule."
  type        = number
  default     = null
}
