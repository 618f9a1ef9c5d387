output "lanes" {
  description = "The trees' lanes, by topology, with the outputs of infra/lane. For alarms, policies and the orchestrator."
  value       = module.lane
}

output "refused" {
  description = "Why a tree has no lane although baselines are enabled, by topology: sentences for people."
  value       = local.refused
}
