output "memory_mb" {
  description = "Memory of the function, MB. More than function_memory_cap_mb if the lane is refused for that reason."
  value       = local.memory_mb
}

output "timeout_s" {
  description = "Timeout of the function, seconds."
  value       = local.timeout_s
}

output "ephemeral_storage_mb" {
  description = "Size of the function's /tmp, MB. More than Lambda allows if the lane is refused for that reason."
  value       = local.ephemeral_storage_mb
}

output "expected_s" {
  description = "Expected run time of the function, seconds. The timeout is derived from it."
  value       = local.expected_s
}

output "parallel_jobs" {
  description = "Jobs of a round that can run at the same time: its shards, or the leaves of its tree. For the lane's concurrency."
  value       = local.is_tree ? ceil(var.clients / local.inputs) : var.shards
}

output "refused" {
  description = "Why no function can do this, and what to change: text for people. Empty if the lane can be deployed."
  value       = local.refused
}
