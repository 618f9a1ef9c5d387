# For experiments on AWS with small rounds. A destroy deletes the models.
# Your own values go into local.auto.tfvars beside this file, which git ignores and which takes precedence.

environment  = "dev"
name_prefix  = "fedagg-dev"
shard_counts = [1, 4, 16]
model_bytes  = 500000000
clients      = 20

log_level               = "DEBUG"
log_retention_days      = 7
round_retention_days    = 3
noncurrent_version_days = 30

force_destroy  = true
create_kms_key = false
access_logs    = false

# Also in backend.hcl: a backend takes no variables.
terraform_state_key = "fedagg/dev/terraform.tfstate"
