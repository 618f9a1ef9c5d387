output "deployment" {
  description = "What the orchestrator needs to know about this environment; read by orchestrator/deployment.py."
  value       = module.aggregator.deployment
}

output "access" {
  description = "What to attach to or to give to the orchestrator, clients and CI; see infra/access."
  value       = module.aggregator.access
}
