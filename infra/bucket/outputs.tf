output "name" {
  description = "The bucket's name. For clients, workers and the orchestrator."
  # Nothing may write to the bucket before its public access is blocked and its policy is in place.
  value      = aws_s3_bucket.this.id
  depends_on = [aws_s3_bucket_public_access_block.this, aws_s3_bucket_policy.this]
}

output "arn" {
  description = "The bucket's ARN. For policies."
  value       = aws_s3_bucket.this.arn
}

output "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects, null with SSE-S3. For the policies of those who read or write objects."
  value       = local.kms_key_arn
}
