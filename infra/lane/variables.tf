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
