output "deployment" {
  description = "What the orchestrator needs to know about the environment. For the orchestrator only, which parses it."
  value = {
    schema                 = 1
    environment            = var.environment
    name_prefix            = var.name_prefix
    region                 = local.region
    endpoint_url           = var.endpoint_url
    bucket                 = module.bucket.name
    kms_key_arn            = module.bucket.kms_key_arn
    result_queue_url       = aws_sqs_queue.results.url
    model_bytes            = var.model_bytes
    clients                = var.clients
    function_memory_cap_mb = var.function_memory_cap_mb
    round_retention_days   = var.round_retention_days
    lanes                  = { for key, lane in module.lane : key => lane.deployment }
    baselines              = { for key, lane in module.baselines.lanes : key => lane.deployment }
    baselines_refused      = module.baselines.refused
  }

  precondition {
    condition     = local.quota == null ? true : local.functions_at_once <= local.quota
    error_message = "The account runs ${coalesce(local.quota, 0)} functions at once (Service Quotas: Lambda, concurrent executions), and the largest lane would run ${local.functions_at_once}. Throttled jobs may count as failed. Set maximum_concurrency = ${coalesce(local.quota, 0)} or less, or raise the quota, or set check_concurrency_quota = false."
  }
}

output "access" {
  description = "Policies and roles for the orchestrator, workers outside Lambda, clients and CI. For people; see infra/access."
  value = {
    orchestrator_policy_arn = module.access.orchestrator_policy_arn
    worker_policy_arn       = module.access.worker_policy_arn
    client_policy_json      = module.access.client_policy_json
    ci_role_arn             = module.access.ci_role_arn
  }
}
