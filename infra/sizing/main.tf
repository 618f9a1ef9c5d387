# How a lane's function is sized. The planner's size_lane() applies the same rule with the same constants, and
# tests/infra/test_sizing.py compares the two. Divisions come last, and divide whole numbers if possible, so that
# both sides round in the same way.

locals {
  constants = jsondecode(file("${path.module}/../../orchestrator/planning/sizing.json"))

  is_tree     = var.topology != "grads-sharding"
  shard_bytes = ceil(var.model_bytes / var.shards)

  # The most inputs of one function. For a tree it is the smallest whole number whose square (lambda-FL) or cube (LIFL)
  # is at least the number of clients. It is searched for, because a root in floating point may be slightly too large.
  inputs = {
    "grads-sharding" = var.clients
    "lambda-fl"      = min([for k in range(1, 318) : k if k * k >= var.clients]...)
    "lifl"           = min([for k in range(1, 48) : k if k * k * k >= var.clients]...)
  }[var.topology]

  # A tree's aggregator holds the complete model as float64 sums, and reads and writes such sums.
  sum_bytes   = local.is_tree ? local.constants.tree_sum_factor * var.model_bytes : 0
  moved_bytes = (local.inputs + 1) * (local.is_tree ? local.sum_bytes : local.shard_bytes)

  # A worker streams: it holds pieces of the updates and the manifest, whatever the shard's size. A quarter is kept free.
  memory_rule_mb = max(
    local.constants.memory_mb,
    local.constants.memory_step_mb * ceil(
      (
        (1000 * local.constants.worker_peak_mb + local.constants.manifest_mb_per_1000_clients * var.clients) * 1.25 * 1048576
        + 1000 * local.sum_bytes
      ) / (1000 * 1048576 * local.constants.memory_step_mb)
    ),
  )
  memory_mb = var.memory_mb_override == null ? local.memory_rule_mb : var.memory_mb_override

  # A worker reads its shard once per client and writes it once, at the rate of the network or of its share of a CPU,
  # whichever is lower. Each input also costs CPU time for a request, which dominates if shards are small.
  vcpu        = local.memory_mb * local.constants.vcpu_per_mb
  bytes_per_s = min(local.constants.network_bytes_per_s, 1000000000 * local.vcpu / local.constants.cpu_seconds_per_gb)
  requests_s  = local.inputs * local.constants.cpu_seconds_per_get / local.vcpu
  expected_s  = local.moved_bytes / local.bytes_per_s + local.requests_s
  timeout_s = min(
    local.constants.timeout_max_s,
    max(local.constants.timeout_min_s, ceil(local.constants.timeout_safety * local.expected_s)),
  )

  # The averaged shard is written to /tmp before it is sent. With more than 64 clients, sums are kept there as well.
  ephemeral_storage_mb = max(
    local.constants.ephemeral_storage_min_mb,
    ceil(local.shard_bytes / 1048576) + local.constants.ephemeral_storage_spare_mb,
  )

  lane = "Lane for ${var.shards} ${var.shards == 1 ? "shard" : "shards"}"
  refused = (
    local.memory_mb > var.function_memory_cap_mb ? (
      local.is_tree
      ? "An aggregator of ${var.topology} holds the complete model as float64 sums and needs ${local.memory_mb} MB for a model of ${var.model_bytes} bytes; function_memory_cap_mb is ${var.function_memory_cap_mb}. Only grads-sharding averages this model here${local.memory_mb <= 10240 ? ", unless the cap is raised" : ""}."
      : "${local.lane}: its function needs ${local.memory_mb} MB for ${var.clients} clients, and function_memory_cap_mb is ${var.function_memory_cap_mb}. Raise function_memory_cap_mb (up to 10240, if the account allows it) or lower clients."
    )
    : local.sum_bytes > 5 * 1024 * 1024 * 1024
    ? "A float64 partial sum of ${var.topology} has ${local.sum_bytes} bytes, and a single PUT takes 5 GiB. Only grads-sharding averages this model."
    : local.expected_s > local.constants.timeout_max_s ? (
      local.is_tree
      ? "An aggregator of ${var.topology} takes about ${ceil(local.expected_s)} s for ${var.clients} clients and a model of ${var.model_bytes} bytes, and a function may run ${local.constants.timeout_max_s} s. Only grads-sharding averages this round."
      : "${local.lane}: averaging ${local.shard_bytes} bytes over ${var.clients} clients takes about ${ceil(local.expected_s)} s, and a function may run ${local.constants.timeout_max_s} s. Use more shards."
    )
    : local.ephemeral_storage_mb > local.constants.ephemeral_storage_max_mb
    ? "${local.lane}: a shard of ${local.shard_bytes} bytes needs ${local.ephemeral_storage_mb} MB in /tmp, and a function may have ${local.constants.ephemeral_storage_max_mb} MB. Use more shards."
    : ""
  )
}
