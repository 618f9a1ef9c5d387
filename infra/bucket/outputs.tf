output "name" {
  description = "The bucket's name: what clients, workers and the orchestrator are given."
  # The bucket counts as there when it is also closed: nobody writes to it before.
  value      = aws_s3_bucket.this.id
  depends_on = [aws_s3_bucket_public_access_block.this, aws_s3_bucket_policy.this]
}

output "arn" {
  description = "The bucket's ARN: what policies are written with."
  value       = aws_s3_bucket.this.arn
}

output "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects, null with SSE-S3. Whoever reads or writes objects may need it."
  value       = local.kms_key_arn
}
