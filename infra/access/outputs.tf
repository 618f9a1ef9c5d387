output "orchestrator_policy_arn" {
  description = "ARN of the policy to attach to whoever runs rounds."
  value       = aws_iam_policy.orchestrator.arn
}

output "client_policy_json" {
  description = "Policy document for clients that have AWS identities of their own; each needs the tag `client` = its client id."
  value       = jsonencode(local.client_policy)
}

output "ci_role_arn" {
  description = "ARN for `role-to-assume` in GitHub Actions; null without github_repository."
  value       = one([for role in aws_iam_role.ci : role.arn])
}
