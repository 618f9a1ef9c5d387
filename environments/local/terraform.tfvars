# The same deployment on this machine: an AWS emulator instead of AWS.
# Your own values go into local.auto.tfvars beside this file, which git ignores and which takes precedence.

environment  = "local"
name_prefix  = "fedagg-local"
shard_counts = [1, 2, 4, 8]
model_bytes  = 50000000
clients      = 20

# `orchestrator deploy` builds the zip for this machine's Python and processor, and passes these three values.
package_path     = "../../build/lambda-local.zip"
runtime          = "python3.11"
cpu_architecture = "x86_64"

log_level               = "INFO"
log_retention_days      = 1
round_retention_days    = 1
noncurrent_version_days = 30

force_destroy  = true
create_kms_key = false
access_logs    = false

# An emulator sends no notifications. Some store an alarm only in part, so that every plan proposes to change it.
alarms = false

# Emulators have no quotas.
check_concurrency_quota = false
