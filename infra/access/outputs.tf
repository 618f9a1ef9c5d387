output "orchestrator_policy_arn" {
  description = "ARN of the orchestrator's policy. Attach it to the role or user that runs rounds."
  value       = aws_iam_policy.orchestrator.arn
}

output "worker_policy_arn" {
  description = "ARN of the policy for `orchestrator worker`. Attach it to the role of the machine that it runs on."
  value       = aws_iam_policy.worker.arn
}

output "client_policy_json" {
  description = "Policy document for clients that have AWS identities of their own. Attach it to each client's role or user, with the tag `client` = its client id."
  value       = jsonencode(local.client_policy)
}

output "ci_role_arn" {
  description = "ARN of the CI role, null without github_repository. Give it to GitHub Actions as `role-to-assume`."
  value       = one([for role in aws_iam_role.ci : role.arn])
}
