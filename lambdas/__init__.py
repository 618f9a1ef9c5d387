"""What ships to AWS Lambda: the round's contracts and the averaging workers (stdlib, numpy, boto3 and fold.c)."""
