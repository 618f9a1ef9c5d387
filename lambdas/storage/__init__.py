"""S3 and SQS as the functions use them."""
