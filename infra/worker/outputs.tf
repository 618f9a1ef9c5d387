output "statements" {
  description = "Statements for the policy of whoever averages: the role of a lane's function, or the machine of `orchestrator worker`."
  value       = local.statements
}
