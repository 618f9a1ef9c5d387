variable "enabled" {
  description = "Whether to deploy the baselines: true or false."
  type        = bool
}

variable "name_prefix" {
  description = "Start of the lanes' names."
  type        = string
}
