output "statements" {
  description = "Statements for the policy of a worker: the role of a lane's function, or of the machine that runs `orchestrator worker`."
  value       = local.statements
}
