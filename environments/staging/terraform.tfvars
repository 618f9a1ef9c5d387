# The shape of prod at a smaller size, for rehearsing a release.
# Your own values go into local.auto.tfvars beside this file, which git ignores and which takes precedence.

environment  = "staging"
name_prefix  = "fedagg-staging"
shard_counts = [4, 16, 64]
model_bytes  = 2000000000
clients      = 100

log_level               = "INFO"
log_retention_days      = 30
round_retention_days    = 5
noncurrent_version_days = 30

force_destroy  = false
create_kms_key = false
access_logs    = true

# Also in backend.hcl: a backend takes no variables.
terraform_state_key = "fedagg/staging/terraform.tfstate"
