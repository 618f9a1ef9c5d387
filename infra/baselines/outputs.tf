output "lanes" {
  description = "The trees' lanes, by architecture, with the outputs of infra/lane."
  value       = module.lane
}

output "refused" {
  description = "Why a tree has no lane although baselines are enabled, by architecture: sentences for people."
  value       = { for tree, reason in local.refused : tree => reason if var.enabled && reason != "" }
}
