"""AWS as this project uses it: boto3 clients, S3 calls, stored models, and the parsed deployment."""
