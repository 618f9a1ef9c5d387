variable "name_prefix" {
  description = "Start of the topic's name."
  type        = string
}

variable "lanes" {
  description = "Function and dead-letter queue of each lane that gets alarms, by shard count or topology."
  type = map(object({
    function_name          = string
    dead_letter_queue_name = string
  }))
}

variable "alarm_email" {
  description = "Address that alarms are sent to (AWS asks it for confirmation first); null for alarms that are only shown in CloudWatch."
  type        = string
  default     = null
}
