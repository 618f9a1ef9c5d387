"""What ships to AWS Lambda: the round's contracts and the averaging workers (stdlib, numpy and boto3 only)."""
