output "deployment" {
  description = "What the orchestrator needs to know about this environment. For the orchestrator only, which parses it."
  value       = module.aggregator.deployment
}

output "access" {
  description = "Policies and roles for the orchestrator, workers outside Lambda, clients and CI. For people; see infra/access."
  value       = module.aggregator.access
}
