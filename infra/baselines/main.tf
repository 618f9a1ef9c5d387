# Lanes for lambda-FL and LIFL. If no function can run a tree's aggregators, Terraform deploys no lane for that tree and
# prints a warning with the reason; the other lanes are deployed. This shows for which models only shards still fit.

locals {
  # memory_mb_override is for functions that average shards; an aggregator needs memory for the complete model.
  sizing = merge(var.sizing, { memory_mb_override = null })

  refused = { for topology, size in module.sizing : topology => size.refused if var.enabled && size.refused != "" }
}

module "sizing" {
  source   = "../sizing"
  for_each = toset(["lambda-fl", "lifl"])

  topology               = each.key
  shards                 = 1
  model_bytes            = local.sizing.model_bytes
  clients                = local.sizing.clients
  function_memory_cap_mb = local.sizing.function_memory_cap_mb
}

check "lambda_fl_fits" {
  assert {
    condition     = !contains(keys(local.refused), "lambda-fl")
    error_message = "No lane for lambda-fl. ${try(local.refused["lambda-fl"], "")}"
  }
}

check "lifl_fits" {
  assert {
    condition     = !contains(keys(local.refused), "lifl")
    error_message = "No lane for lifl. ${try(local.refused["lifl"], "")}"
  }
}

module "lane" {
  source   = "../lane"
  for_each = { for topology, size in module.sizing : topology => topology if var.enabled && size.refused == "" }

  name         = "${var.name_prefix}-${each.key}"
  topology     = each.value
  bucket       = var.bucket
  result_queue = var.result_queue
  sizing       = local.sizing
  function     = var.function
  delivery     = var.delivery
  iam          = var.iam
}
