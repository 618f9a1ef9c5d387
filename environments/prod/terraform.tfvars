# Production. A KMS key is created unless kms_key_arn names one.
# Your own values go into local.auto.tfvars beside this file, which git ignores and which takes precedence.

environment  = "prod"
name_prefix  = "fedagg-prod"
shard_counts = [16, 64, 256]
model_bytes  = 5000000000
clients      = 200

log_level               = "INFO"
log_retention_days      = 90
round_retention_days    = 7
noncurrent_version_days = 90

force_destroy  = false
create_kms_key = true
access_logs    = true

# Also in backend.hcl: a backend takes no variables.
terraform_state_key = "fedagg/prod/terraform.tfstate"
