variable "name_prefix" {
  description = "Start of the topic's name: 1 to 32 lower-case letters, digits and hyphens."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]{1,32}$", var.name_prefix))
    error_message = "name_prefix must be 1 to 32 lower-case letters, digits and hyphens."
  }
}

variable "lanes" {
  description = "What to watch: function and dead-letter queue of each lane, by shard count."
  type = map(object({
    function_name          = string
    dead_letter_queue_name = string
  }))
}

variable "function_error_threshold" {
  description = "Failed invocations of one function within five minutes that raise its alarm, 1 to 100000."
  type        = number
  default     = 1

  validation {
    condition     = var.function_error_threshold >= 1 && var.function_error_threshold <= 100000 && floor(var.function_error_threshold) == var.function_error_threshold
    error_message = "function_error_threshold must be a whole number from 1 to 100000."
  }
}

variable "alarm_email" {
  description = "Address that alarms are sent to (AWS asks it for confirmation first); null for alarms that only show in CloudWatch."
  type        = string
  default     = null

  validation {
    condition     = var.alarm_email == null || can(regex("^[^@ ]+@[^@ ]+$", var.alarm_email))
    error_message = "alarm_email must be null or an e-mail address."
  }
}
