output "deployment" {
  description = "The lane's entry in the environment's `deployment` output. For the orchestrator."
  value = {
    shards                = var.shards
    queue_url             = aws_sqs_queue.jobs.url
    queue_arn             = aws_sqs_queue.jobs.arn
    dead_letter_queue_url = aws_sqs_queue.dead_letters.url
    dead_letter_queue_arn = aws_sqs_queue.dead_letters.arn
    function_name         = aws_lambda_function.worker.function_name
    memory_mb             = aws_lambda_function.worker.memory_size
    timeout_s             = aws_lambda_function.worker.timeout
    ephemeral_storage_mb  = module.sizing.ephemeral_storage_mb
    topology              = var.topology
    cpu_architecture      = var.function.cpu_architecture
    maximum_concurrency   = local.maximum_concurrency
    max_receive_count     = var.delivery.max_receive_count
  }

  # The lane is complete when its function takes jobs.
  depends_on = [aws_lambda_event_source_mapping.jobs]
}

output "dead_letter_queue_name" {
  description = "Name of the dead-letter queue. For alarms."
  value       = aws_sqs_queue.dead_letters.name
}

output "function_name" {
  description = "Name of the function. For alarms and logs."
  value       = aws_lambda_function.worker.function_name
}
