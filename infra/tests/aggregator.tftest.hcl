mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }

  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }

  mock_data "aws_servicequotas_service_quota" {
    defaults = { value = 1000 }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/fedagg-test" }
  }

  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::123456789012:policy/fedagg-test-orchestrator" }
  }

  mock_resource "aws_lambda_function" {
    defaults = { arn = "arn:aws:lambda:us-east-1:123456789012:function:fedagg-test" }
  }

  mock_resource "aws_sqs_queue" {
    defaults = {
      arn = "arn:aws:sqs:us-east-1:123456789012:fedagg-test"
      url = "https://sqs.us-east-1.amazonaws.com/123456789012/fedagg-test"
    }
  }

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-1:123456789012:key/made-here" }
  }

  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:fedagg-test-alarms" }
  }
}

variables {
  environment   = "test"
  name_prefix   = "fedagg-test"
  shard_counts  = [1, 4, 16]
  model_bytes   = 400000000
  clients       = 20
  force_destroy = true                          # `terraform test` destroys what it applied
  package_path  = "tests/aggregator.tftest.hcl" # any file: the mocked provider does not open it
}

################################################################################
# Lanes
################################################################################

run "there_is_a_lane_for_each_shard_count" {
  module {
    source = "./aggregator"
  }

  assert {
    condition     = { for key, lane in output.deployment.lanes : key => lane.shards } == { "1" = 1, "4" = 4, "16" = 16 }
    error_message = "Unexpected lanes: ${jsonencode(keys(output.deployment.lanes))}"
  }

  assert {
    condition = { for key, lane in output.deployment.lanes : key => lane.function_name } == {
      "1" = "fedagg-test-shards-1", "4" = "fedagg-test-shards-4", "16" = "fedagg-test-shards-16"
    }
    error_message = "Every lane must have a function of its own, named after its shard count."
  }

  # 21 x 400 MB / M at 75 MB/s, and 0.41 s for 20 requests: 112.4 s, 28.4 s, 7.4 s; four times that, at least 60 s
  assert {
    condition     = { for key, lane in output.deployment.lanes : key => lane.timeout_s } == { "1" = 450, "4" = 114, "16" = 60 }
    error_message = "Every lane must be sized for its own shards: ${jsonencode({ for key, lane in output.deployment.lanes : key => lane.timeout_s })}"
  }
}

run "policies_name_lanes_by_patterns_that_fit_every_lane_and_no_dead_letter_queue" {
  module {
    source = "./aggregator"
  }

  variables {
    shard_counts = [1, 4, 16, 256, 10000]
    baselines    = true
  }

  assert {
    condition = alltrue([
      for lane in local.all_lanes : length([
        for name in local.lane_names : name if can(regex("^${replace(name, "?", ".")}$", lane.function_name))
      ]) == 1
    ])
    error_message = "Every lane must fit one of ${jsonencode(local.lane_names)}."
  }

  assert {
    condition = alltrue([
      for lane in local.all_lanes :
      !anytrue([for name in local.lane_names : can(regex("^${replace(name, "?", ".")}$", lane.dead_letter_queue_name))])
    ])
    error_message = "A dead-letter queue fits one of ${jsonencode(local.lane_names)}."
  }
}

# IAM: a managed policy has at most 6,144 characters without white space; jsonencode writes none.
run "policies_stay_below_iams_limit_with_three_hundred_lanes_and_the_longest_names" {
  command = plan

  module {
    source = "./access"
  }

  variables {
    name_prefix      = "a-prefix-of-29-characters-ex0"
    bucket           = { arn = "arn:aws-us-gov:s3:::a-prefix-of-29-characters-ex0-123456789012-ap-southeast-2-ab", kms_key_arn = "arn:aws-us-gov:kms:ap-southeast-2:123456789012:key/mrk-12345678901234567890123456789012" }
    result_queue_arn = "arn:aws-us-gov:sqs:ap-southeast-2:123456789012:a-prefix-of-29-characters-ex0-results"
    lane_names       = concat([for digits in range(1, 6) : "a-prefix-of-29-characters-ex0-shards-${substr("?????", 0, digits)}"], ["a-prefix-of-29-characters-ex0-lambda-fl", "a-prefix-of-29-characters-ex0-lifl"])
  }

  override_data {
    target = data.aws_region.current
    values = { name = "ap-southeast-2" }
  }

  override_data {
    target = data.aws_partition.current
    values = { partition = "aws-us-gov", dns_suffix = "amazonaws.com" }
  }

  assert {
    condition     = length(aws_iam_policy.orchestrator.policy) < 6144 && length(aws_iam_policy.worker.policy) < 6144
    error_message = "${length(aws_iam_policy.orchestrator.policy)} and ${length(aws_iam_policy.worker.policy)} characters are more than 6,144."
  }
}

run "three_hundred_lanes_of_all_lengths_need_five_patterns" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    name_prefix  = "a-prefix-of-29-characters-ex0"
    shard_counts = concat(range(1, 299), [1000, 10000])
    baselines    = true
  }

  assert {
    condition     = length(local.lane_names) == 7 && length(module.lane) == 300
    error_message = "A policy must not grow with the lanes: ${jsonencode(local.lane_names)}"
  }
}

# The longest region name is us-isof-south-1. Limits: Lambda function 64, SQS queue 80, IAM role 64, managed policy 128, S3
# bucket 63, CloudWatch alarm 255, SNS topic 256 characters.
run "the_longest_names_are_within_the_limits_of_aws" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    name_prefix       = "a-prefix-of-29-characters-ex0"
    shard_counts      = [10000]
    baselines         = true
    access_logs       = true
    alarm_email       = "oncall@example.org"
    github_repository = "example/federation"
  }

  override_data {
    target = data.aws_region.current
    values = { name = "us-isof-south-1" }
  }

  assert {
    condition     = length(var.name_prefix) == 29 && length("${local.bucket_name}-logs") == 63
    error_message = "${local.bucket_name}-logs has ${length("${local.bucket_name}-logs")} characters, and the most are 63."
  }

  assert {
    condition = alltrue([
      for lane in local.all_lanes : length(lane.function_name) <= 64 && length(lane.dead_letter_queue_name) <= 80
    ])
    error_message = "A function, a role or a queue has a name that AWS refuses."
  }

  assert {
    condition     = length(local.result_queue_name) <= 80 && max([for name in module.monitoring.alarm_names : length(name)]...) <= 255
    error_message = "The result queue or an alarm has a name that AWS refuses."
  }

  assert {
    condition     = length("${var.name_prefix}-orchestrator") <= 64
    error_message = "A policy or a role has a name that AWS refuses."
  }
}

run "a_prefix_of_thirty_characters_is_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    name_prefix = "a-prefix-of-30-characters-exac"
  }

  expect_failures = [var.name_prefix]
}

run "a_bucket_name_leaves_room_for_that_of_its_logs" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    bucket_name = "a-bucket-name-of-59-characters-which-is-longer-than-allowed"
    access_logs = true
  }

  expect_failures = [var.bucket_name]
}

run "another_list_of_shard_counts_makes_other_lanes" {
  module {
    source = "./aggregator"
  }

  variables {
    shard_counts = [10000]
  }

  assert {
    condition     = keys(output.deployment.lanes) == ["10000"]
    error_message = "Expected only the requested lane, got ${jsonencode(keys(output.deployment.lanes))}."
  }
}

################################################################################
# The contract with the orchestrator
################################################################################

run "the_deployment_output_has_the_documented_fields" {
  module {
    source = "./aggregator"
  }

  assert {
    condition = jsonencode({ for key, value in output.deployment : key => value if key != "lanes" }) == jsonencode({
      schema                 = 1
      environment            = "test"
      name_prefix            = "fedagg-test"
      region                 = "us-east-1"
      endpoint_url           = null
      bucket                 = module.bucket.name
      kms_key_arn            = null
      result_queue_url       = "https://sqs.us-east-1.amazonaws.com/123456789012/fedagg-test"
      model_bytes            = 400000000
      clients                = 20
      function_memory_cap_mb = 3008
      round_retention_days   = 7
      baselines              = {}
      baselines_refused      = {}
    })
    error_message = "orchestrator/aws/deployment.py expects other fields: ${jsonencode(output.deployment)}"
  }

  assert {
    condition = alltrue([
      for lane in output.deployment.lanes : keys(lane) == [
        "cpu_architecture", "dead_letter_queue_arn", "dead_letter_queue_url", "ephemeral_storage_mb", "function_name",
        "max_receive_count", "maximum_concurrency", "memory_mb", "queue_arn", "queue_url", "shards", "timeout_s",
        "topology",
      ]
    ])
    error_message = "orchestrator/aws/deployment.py expects other fields in a lane."
  }
}

run "the_emulators_address_is_handed_on" {
  module {
    source = "./aggregator"
  }

  variables {
    endpoint_url = "http://127.0.0.1:4566"
  }

  assert {
    condition     = output.deployment.endpoint_url == "http://127.0.0.1:4566"
    error_message = "The orchestrator must find the emulator."
  }
}

run "the_bucket_is_named_after_prefix_account_and_region" {
  module {
    source = "./aggregator"
  }

  assert {
    condition     = local.bucket_name == "fedagg-test-123456789012-us-east-1"
    error_message = "A bare prefix may be taken by another account: ${local.bucket_name}"
  }
}

run "the_buckets_name_can_be_given" {
  module {
    source = "./aggregator"
  }

  variables {
    bucket_name = "our-own-name"
  }

  assert {
    condition     = local.bucket_name == "our-own-name"
    error_message = "bucket_name must win: ${local.bucket_name}"
  }
}

run "results_are_kept_for_an_hour_encrypted_and_behind_tls" {
  module {
    source = "./aggregator"
  }

  assert {
    condition     = aws_sqs_queue.results.message_retention_seconds == 3600 && aws_sqs_queue.results.sqs_managed_sse_enabled
    error_message = "The result queue must keep messages for an hour, encrypted."
  }

  assert {
    condition = jsondecode(aws_sqs_queue.results.policy).Statement == [{
      Sid       = "DenyWithoutTLS"
      Effect    = "Deny"
      Principal = "*"
      Action    = "sqs:*"
      Resource  = "arn:aws:sqs:us-east-1:123456789012:fedagg-test-results"
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
    error_message = "The result queue must refuse requests without TLS: ${aws_sqs_queue.results.policy}"
  }
}

run "a_key_that_is_made_here_reaches_the_orchestrator_and_the_clients" {
  module {
    source = "./aggregator"
  }

  variables {
    create_kms_key = true
  }

  assert {
    condition     = output.deployment.kms_key_arn == "arn:aws:kms:us-east-1:123456789012:key/made-here"
    error_message = "The deployment must name the key."
  }

  assert {
    condition     = contains([for s in jsondecode(output.access.client_policy_json).Statement : s.Sid], "UseObjectKey")
    error_message = "Clients must be allowed to use the key."
  }
}

run "there_are_alarms_for_every_lane_and_no_topic_unless_requested" {
  module {
    source = "./aggregator"
  }

  assert {
    condition = toset(module.monitoring.alarm_names) == toset(flatten([
      for shards in [1, 4, 16] : ["fedagg-test-shards-${shards}-dead-letters", "fedagg-test-shards-${shards}-errors", "fedagg-test-shards-${shards}-throttles"]
    ]))
    error_message = "Every lane needs all three alarms: ${jsonencode(module.monitoring.alarm_names)}"
  }

  assert {
    condition     = module.monitoring.topic_arn == null && output.access.ci_role_arn == null
    error_message = "A topic and a CI role may exist only where they are requested."
  }
}

run "alarms_can_be_left_out" {
  module {
    source = "./aggregator"
  }

  variables {
    alarms = false
  }

  assert {
    condition     = length(module.monitoring.alarm_names) == 0
    error_message = "An environment without alarms must have none: ${jsonencode(module.monitoring.alarm_names)}"
  }
}

################################################################################
# The account's quota
################################################################################

run "lanes_that_run_more_functions_than_the_account_are_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  override_data {
    target = data.aws_servicequotas_service_quota.concurrent_executions
    values = { value = 10 }
  }

  expect_failures = [output.deployment]
}

run "a_maximum_at_the_accounts_quota_is_allowed" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    maximum_concurrency = 10
  }

  override_data {
    target = data.aws_servicequotas_service_quota.concurrent_executions
    values = { value = 10 }
  }
}

run "lanes_that_no_function_works_for_need_no_quota" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    functions_enabled = false
  }

  override_data {
    target = data.aws_servicequotas_service_quota.concurrent_executions
    values = { value = 10 }
  }
}

run "nobody_asks_for_the_quota_of_an_emulator" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    check_concurrency_quota = false
  }

  assert {
    condition     = length(data.aws_servicequotas_service_quota.concurrent_executions) == 0 && local.quota == null
    error_message = "Emulators have no Service Quotas."
  }
}

################################################################################
# Values that are refused
################################################################################

run "values_below_their_ranges_are_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    shard_counts            = [0, 4]
    model_bytes             = 0
    clients                 = 0
    function_memory_cap_mb  = 127
    memory_mb_override      = 127
    maximum_concurrency     = 1
    max_receive_count       = 0
    log_retention_days      = 0
    round_retention_days    = 0
    noncurrent_version_days = 0
    incomplete_upload_days  = 0
    access_log_days         = 0
  }

  expect_failures = [
    var.shard_counts, var.model_bytes, var.clients, var.function_memory_cap_mb, var.memory_mb_override,
    var.maximum_concurrency, var.max_receive_count, var.log_retention_days, var.round_retention_days,
    var.noncurrent_version_days, var.incomplete_upload_days, var.access_log_days,
  ]
}

run "values_above_their_ranges_are_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  # 10000 shards are the most parts of a multipart upload.
  variables {
    shard_counts            = [4, 10001]
    model_bytes             = 10995116277761
    clients                 = 100001
    function_memory_cap_mb  = 10241
    memory_mb_override      = 10241
    maximum_concurrency     = 1001
    max_receive_count       = 1001
    log_retention_days      = 3654
    round_retention_days    = 3651
    noncurrent_version_days = 3651
    incomplete_upload_days  = 366
    access_log_days         = 3651
  }

  expect_failures = [
    var.shard_counts, var.model_bytes, var.clients, var.function_memory_cap_mb, var.memory_mb_override,
    var.maximum_concurrency, var.max_receive_count, var.log_retention_days, var.round_retention_days,
    var.noncurrent_version_days, var.incomplete_upload_days, var.access_log_days,
  ]
}

run "fractions_are_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    shard_counts = [1.5]
    model_bytes  = 1.5
    clients      = 1.5
  }

  expect_failures = [var.shard_counts, var.model_bytes, var.clients]
}

run "no_shard_counts_are_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    shard_counts = []
  }

  expect_failures = [var.shard_counts]
}

run "the_same_shard_count_twice_is_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    shard_counts = [4, 4]
  }

  expect_failures = [var.shard_counts]
}

run "names_that_aws_or_github_cannot_have_are_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    environment       = "Test"
    name_prefix       = "Fedagg_Test"
    endpoint_url      = "http://127.0.0.1:4566/path"
    runtime           = "python3.14" # the provider does not know it
    cpu_architecture  = "amd64"
    log_level         = "TRACE"
    bucket_name       = "Fedagg"
    kms_key_arn       = "alias/key"
    alarm_email       = "oncall"
    github_repository = "example/*"
    github_branch     = "*"
    terraform_state   = { bucket = "*", key = "state" }

    iam_path             = "federation"
    permissions_boundary = "boundary"
  }

  expect_failures = [
    var.environment, var.name_prefix, var.endpoint_url, var.runtime, var.cpu_architecture, var.log_level,
    var.bucket_name, var.kms_key_arn, var.alarm_email, var.github_repository, var.github_branch, var.terraform_state,
    var.iam_path, var.permissions_boundary,
  ]
}

run "an_owner_may_have_an_underscore_and_a_repository_ids" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    github_repository = "some_owner/federation.v2"
    github_ids        = { owner = 1, repository = 4567890123 }
  }
}

run "ids_without_a_repository_are_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    github_ids = { owner = 1, repository = 2 }
  }

  expect_failures = [var.github_ids]
}

run "two_keys_at_once_are_refused" {
  command = plan

  module {
    source = "./aggregator"
  }

  variables {
    kms_key_arn    = "arn:aws:kms:us-east-1:123456789012:key/given"
    create_kms_key = true
  }

  expect_failures = [var.create_kms_key]
}
