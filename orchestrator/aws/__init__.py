"""What this project needs of AWS: boto3 clients, S3 calls, stored models, and what is deployed."""
