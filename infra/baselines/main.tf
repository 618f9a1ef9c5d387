################################################################################
# Which trees fit
################################################################################

# The same rule and constants as infra/lane; here to know beforehand which trees have a lane. A tree that does not fit is
# left out with a sentence, so that the sharded lanes deploy all the same: that trees stop fitting where shards go on
# is what the baselines are there to show.
locals {
  sizing = jsondecode(file("${path.module}/../../orchestrator/planning/sizing.json"))

  sum_bytes = local.sizing.tree_sum_factor * var.model_bytes
  memory_mb = max(
    local.sizing.memory_mb,
    local.sizing.memory_step_mb * ceil(
      (
        (1000 * local.sizing.worker_peak_mb + local.sizing.manifest_mb_per_1000_clients * var.clients) * 1.25 * 1048576
        + 1000 * local.sum_bytes
      ) / (1000 * 1048576 * local.sizing.memory_step_mb)
    ),
  )
  bytes_per_s = min(
    local.sizing.network_bytes_per_s,
    1000000000 * local.memory_mb * local.sizing.vcpu_per_mb / local.sizing.cpu_seconds_per_gb,
  )
  storage_mb = ceil(var.model_bytes / 1048576) + local.sizing.ephemeral_storage_spare_mb

  # Trees and their fan-in: the smallest whole number whose square or cube reaches the clients.
  trees = {
    "lambda-fl" = min([for k in range(1, 318) : k if k * k >= var.clients]...)
    "lifl"      = min([for k in range(1, 48) : k if k * k * k >= var.clients]...)
  }
  expected_s = { for tree, fan_in in local.trees : tree => (fan_in + 1) * local.sum_bytes / local.bytes_per_s }

  refused = {
    for tree, fan_in in local.trees : tree => (
      local.memory_mb > var.function_memory_cap_mb
      ? "An aggregator of ${tree} holds the complete model as float64 sums and needs ${local.memory_mb} MB for a model of ${var.model_bytes} bytes; function_memory_cap_mb is ${var.function_memory_cap_mb}. Only grads-sharding averages this model here${local.memory_mb <= 10240 ? ", unless the cap is raised" : ""}."
      : local.sum_bytes > 5 * pow(1024, 3)
      ? "A float64 partial sum of ${tree} has ${local.sum_bytes} bytes, and a single PUT takes 5 GiB. Only grads-sharding averages this model."
      : local.expected_s[tree] > local.sizing.timeout_max_s
      ? "An aggregator of ${tree} takes about ${ceil(local.expected_s[tree])} s for ${var.clients} clients and a model of ${var.model_bytes} bytes, and a function may run ${local.sizing.timeout_max_s} s. Only grads-sharding averages this round."
      : local.storage_mb > local.sizing.ephemeral_storage_max_mb
      ? "An aggregator of ${tree} needs ${local.storage_mb} MB in /tmp for a model of ${var.model_bytes} bytes, and a function may have ${local.sizing.ephemeral_storage_max_mb} MB. Only grads-sharding averages this model."
      : ""
    )
  }
}

check "lambda_fl_fits" {
  assert {
    condition     = !var.enabled || local.refused["lambda-fl"] == ""
    error_message = "No lane for lambda-fl. ${local.refused["lambda-fl"]}"
  }
}

check "lifl_fits" {
  assert {
    condition     = !var.enabled || local.refused["lifl"] == ""
    error_message = "No lane for lifl. ${local.refused["lifl"]}"
  }
}

################################################################################
# Lanes
################################################################################

module "lane" {
  source   = "../lane"
  for_each = { for tree, reason in local.refused : tree => tree if var.enabled && reason == "" }

  name         = "${var.name_prefix}-${each.key}"
  tree         = each.value
  shards       = 1
  bucket       = var.bucket
  kms_key_arn  = var.kms_key_arn
  result_queue = var.result_queue

  model_bytes            = var.model_bytes
  clients                = var.clients
  function_memory_cap_mb = var.function_memory_cap_mb

  functions_enabled   = var.functions_enabled
  maximum_concurrency = var.maximum_concurrency
  max_receive_count   = var.max_receive_count

  package_path       = var.package_path
  runtime            = var.runtime
  architecture       = var.architecture
  log_level          = var.log_level
  log_retention_days = var.log_retention_days
}
