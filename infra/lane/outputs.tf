output "deployment" {
  description = "The lane as it appears in the environment's `deployment` output."
  value = {
    shards                = var.shards
    queue_url             = aws_sqs_queue.jobs.url
    queue_arn             = aws_sqs_queue.jobs.arn
    dead_letter_queue_url = aws_sqs_queue.dead_letters.url
    dead_letter_queue_arn = aws_sqs_queue.dead_letters.arn
    function_name         = aws_lambda_function.worker.function_name
    memory_mb             = aws_lambda_function.worker.memory_size
    timeout_s             = aws_lambda_function.worker.timeout
    ephemeral_storage_mb  = local.ephemeral_storage_mb
    architecture          = var.architecture
    maximum_concurrency   = local.maximum_concurrency
    max_receive_count     = var.max_receive_count
  }

  # A lane is there when somebody takes its jobs.
  depends_on = [aws_lambda_event_source_mapping.jobs]
}

output "queue_arn" {
  description = "ARN of the job queue: for the policy of whoever sends jobs."
  value       = aws_sqs_queue.jobs.arn
}

output "dead_letter_queue_arn" {
  description = "ARN of the dead-letter queue: for the policy of whoever sends jobs back."
  value       = aws_sqs_queue.dead_letters.arn
}

output "dead_letter_queue_name" {
  description = "Name of the dead-letter queue: for alarms."
  value       = aws_sqs_queue.dead_letters.name
}

output "function_name" {
  description = "Name of the function: for alarms and logs."
  value       = aws_lambda_function.worker.function_name
}

output "function_arn" {
  description = "ARN of the function: for the policy of whoever ships its code."
  value       = aws_lambda_function.worker.arn
}

output "role_name" {
  description = "Name of the function's role: to attach what your account asks of every role."
  value       = aws_iam_role.worker.name
}
