output "deployment" {
  description = "What the orchestrator needs to know about this environment; read by orchestrator/deployment.py."
  value       = module.aggregator.deployment
}
