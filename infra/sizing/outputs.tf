output "memory_mb" {
  description = "Memory of the function, MB. More than function_memory_cap_mb where the lane is refused for it."
  value       = local.memory_mb
}

output "timeout_s" {
  description = "Timeout of the function, seconds."
  value       = local.timeout_s
}

output "ephemeral_storage_mb" {
  description = "Size of the function's /tmp, MB. More than Lambda allows where the lane is refused for it."
  value       = local.ephemeral_storage_mb
}

output "expected_s" {
  description = "Expected run time of the function, seconds: what the timeout is derived from."
  value       = local.expected_s
}

output "parallel_jobs" {
  description = "Jobs of a round that can run at the same time: its shards, or the leaves of its tree. For the lane's concurrency."
  value       = local.is_tree ? ceil(var.clients / local.inputs) : var.shards
}

output "refused" {
  description = "Why no function can do it, and what to change: a sentence for people. Empty where the lane can be deployed."
  value       = local.refused
}
