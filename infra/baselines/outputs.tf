output "lanes" {
  description = "The trees' lanes, by topology, with the outputs of infra/lane. For alarms, policies and the orchestrator."
  value       = module.lane
}

output "refused" {
  description = "By topology, why a tree has no lane although baselines are enabled: text for people."
  value       = local.refused
}
