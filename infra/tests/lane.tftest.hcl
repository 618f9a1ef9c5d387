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

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/fedagg-test-shards-4" }
  }

  mock_resource "aws_lambda_function" {
    defaults = { arn = "arn:aws:lambda:us-east-1:123456789012:function:fedagg-test-shards-4" }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/fedagg-test-shards-4" }
  }
}

override_resource {
  target = aws_sqs_queue.jobs
  values = {
    arn = "arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-4"
    url = "https://sqs.us-east-1.amazonaws.com/123456789012/fedagg-test-shards-4"
  }
}

override_resource {
  target = aws_sqs_queue.dead_letters
  values = {
    arn = "arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-4-dead-letters"
    url = "https://sqs.us-east-1.amazonaws.com/123456789012/fedagg-test-shards-4-dead-letters"
  }
}

variables {
  name         = "fedagg-test-shards-4"
  shards       = 4
  bucket       = { name = "fedagg-test", arn = "arn:aws:s3:::fedagg-test" }
  result_queue = { url = "https://sqs.us-east-1.amazonaws.com/123456789012/results", arn = "arn:aws:sqs:us-east-1:123456789012:results" }
  sizing       = { model_bytes = 3000000000, clients = 20, function_memory_cap_mb = 3008 }
  delivery     = { functions_enabled = true, max_receive_count = 5 }
  function = {
    package_path       = "tests/lane.tftest.hcl" # any file: the mocked provider does not open it
    runtime            = "python3.13"
    cpu_architecture   = "arm64"
    log_level          = "INFO"
    log_retention_days = 30
  }
}

################################################################################
# Delivery
################################################################################

run "a_job_stays_invisible_for_six_times_the_functions_timeout" {
  module {
    source = "./lane"
  }

  # 21 x 750 MB at 75 MB/s and 20 requests: 210.4 s, four times that = 842 s
  assert {
    condition     = aws_lambda_function.worker.timeout == 842 && aws_sqs_queue.jobs.visibility_timeout_seconds == 5052
    error_message = "Expected 842 s and 6 x 842 s, got ${aws_lambda_function.worker.timeout} s and ${aws_sqs_queue.jobs.visibility_timeout_seconds} s."
  }
}

run "the_visibility_timeout_follows_another_timeout" {
  module {
    source = "./lane"
  }

  variables {
    sizing = { model_bytes = 1000, clients = 20, function_memory_cap_mb = 3008 }
  }

  assert {
    condition     = aws_lambda_function.worker.timeout == 60 && aws_sqs_queue.jobs.visibility_timeout_seconds == 360
    error_message = "Expected 60 s and 6 x 60 s, got ${aws_lambda_function.worker.timeout} s and ${aws_sqs_queue.jobs.visibility_timeout_seconds} s."
  }
}

run "a_job_that_keeps_failing_goes_to_its_own_dead_letter_queue" {
  module {
    source = "./lane"
  }

  assert {
    condition = jsondecode(aws_sqs_queue.jobs.redrive_policy) == {
      deadLetterTargetArn = "arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-4-dead-letters"
      maxReceiveCount     = 5
    }
    error_message = "The redrive policy must name the lane's dead-letter queue and five deliveries: ${aws_sqs_queue.jobs.redrive_policy}"
  }

  assert {
    condition = jsondecode(aws_sqs_queue.dead_letters.redrive_allow_policy) == {
      redrivePermission = "byQueue"
      sourceQueueArns   = ["arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-4"]
    }
    error_message = "Only the lane's own queue may send to its dead-letter queue: ${aws_sqs_queue.dead_letters.redrive_allow_policy}"
  }

  assert {
    condition     = aws_sqs_queue.dead_letters.message_retention_seconds == 1209600
    error_message = "Failed jobs must be kept for 14 days."
  }
}

run "the_arns_that_policies_spell_out_are_those_of_the_queues_names" {
  module {
    source = "./lane"
  }

  assert {
    condition = (
      local.queue_arn == "arn:aws:sqs:us-east-1:123456789012:${aws_sqs_queue.jobs.name}" &&
      local.dead_letter_queue_arn == "arn:aws:sqs:us-east-1:123456789012:${aws_sqs_queue.dead_letters.name}"
    )
    error_message = "${local.queue_arn} and ${local.dead_letter_queue_arn} are not the queues ${aws_sqs_queue.jobs.name} and ${aws_sqs_queue.dead_letters.name}."
  }
}

run "both_queues_are_encrypted_and_refuse_connections_without_tls" {
  module {
    source = "./lane"
  }

  assert {
    condition     = aws_sqs_queue.jobs.sqs_managed_sse_enabled && aws_sqs_queue.dead_letters.sqs_managed_sse_enabled
    error_message = "Both queues must be encrypted."
  }

  assert {
    condition = alltrue([
      for queue in [aws_sqs_queue.jobs, aws_sqs_queue.dead_letters] :
      jsondecode(queue.policy).Statement == [{
        Sid       = "DenyWithoutTLS"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = "arn:aws:sqs:us-east-1:123456789012:${queue.name}"
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      }]
    ])
    error_message = "Each queue's policy must be one denial for requests without TLS, on itself."
  }
}

run "one_job_at_a_time_and_failures_are_reported_per_job" {
  module {
    source = "./lane"
  }

  assert {
    condition     = aws_lambda_event_source_mapping.jobs.batch_size == 1
    error_message = "A worker must get one job at a time."
  }

  assert {
    condition     = aws_lambda_event_source_mapping.jobs.function_response_types == toset(["ReportBatchItemFailures"])
    error_message = "Without ReportBatchItemFailures a job that is to be tried again would be deleted."
  }

  assert {
    condition     = aws_lambda_event_source_mapping.jobs.event_source_arn == aws_sqs_queue.jobs.arn
    error_message = "The mapping must poll the lane's own queue."
  }
}

run "without_a_maximum_the_mapping_has_no_scaling_config" {
  module {
    source = "./lane"
  }

  assert {
    condition     = length(aws_lambda_event_source_mapping.jobs.scaling_config) == 0 && output.deployment.maximum_concurrency == 4
    error_message = "With a scaling_config, Lambda polls an idle queue with five pollers instead of two."
  }
}

run "the_orchestrator_is_told_at_least_two_workers" {
  module {
    source = "./lane"
  }

  variables {
    shards = 1
    sizing = { model_bytes = 50000000, clients = 20, function_memory_cap_mb = 3008 }
  }

  assert {
    condition     = output.deployment.maximum_concurrency == 2
    error_message = "A mapping runs at least two: ${output.deployment.maximum_concurrency}."
  }
}

run "the_orchestrator_is_told_at_most_a_thousand_workers" {
  module {
    source = "./lane"
  }

  variables {
    shards = 10000
  }

  assert {
    condition     = output.deployment.maximum_concurrency == 1000
    error_message = "A mapping runs at most 1,000: ${output.deployment.maximum_concurrency}."
  }
}

run "the_number_of_workers_can_be_given" {
  module {
    source = "./lane"
  }

  variables {
    delivery = { functions_enabled = true, maximum_concurrency = 3, max_receive_count = 5 }
  }

  assert {
    condition     = aws_lambda_event_source_mapping.jobs.scaling_config[0].maximum_concurrency == 3 && output.deployment.maximum_concurrency == 3
    error_message = "maximum_concurrency must be the mapping's."
  }
}

################################################################################
# Function and role
################################################################################

run "the_worker_is_told_its_bucket_and_its_result_queue_and_nothing_else" {
  module {
    source = "./lane"
  }

  assert {
    condition = aws_lambda_function.worker.environment[0].variables == tomap({
      FL_BUCKET           = "fedagg-test"
      FL_RESULT_QUEUE_URL = "https://sqs.us-east-1.amazonaws.com/123456789012/results"
      FL_LOG_LEVEL        = "INFO"
    })
    error_message = "Unexpected environment: ${jsonencode(aws_lambda_function.worker.environment[0].variables)}"
  }

  assert {
    condition     = aws_lambda_function.worker.handler == "lambdas.shard_average.handler" && aws_lambda_function.worker.runtime == "python3.13" && aws_lambda_function.worker.architectures[0] == "arm64"
    error_message = "Handler, runtime or processor is not the given one."
  }

  assert {
    condition     = aws_lambda_function.worker.source_code_hash == filebase64sha256("tests/lane.tftest.hcl")
    error_message = "A new zip must lead to a new deployment."
  }

  assert {
    condition     = aws_cloudwatch_log_group.worker.name == "/aws/lambda/${aws_lambda_function.worker.function_name}" && aws_cloudwatch_log_group.worker.retention_in_days == 30
    error_message = "The log group must be the function's, with a retention."
  }
}

run "the_worker_may_do_only_its_job" {
  module {
    source = "./lane"
  }

  assert {
    condition = { for s in jsondecode(aws_iam_role_policy.worker.policy).Statement : s.Sid => [s.Action, s.Resource] } == {
      ReadRounds               = [["s3:GetObject"], ["arn:aws:s3:::fedagg-test/rounds/*"]]
      WriteShards              = [["s3:PutObject"], ["arn:aws:s3:::fedagg-test/models/*/global.safetensors", "arn:aws:s3:::fedagg-test/rounds/*/shards/*", "arn:aws:s3:::fedagg-test/rounds/*/norms/*"]]
      FindParts                = [["s3:ListMultipartUploadParts"], ["arn:aws:s3:::fedagg-test/models/*/global.safetensors"]]
      TellMissingFromForbidden = [["s3:ListBucket"], ["arn:aws:s3:::fedagg-test"]]
      TakeJobs                 = [["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"], ["arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-4"]]
      SendResults              = [["sqs:SendMessage"], ["arn:aws:sqs:us-east-1:123456789012:results"]]
      WriteLogs                = [["logs:CreateLogStream", "logs:PutLogEvents"], ["arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/fedagg-test-shards-4:*"]]
    }
    error_message = "The worker's permissions are not exactly the documented ones: ${aws_iam_role_policy.worker.policy}"
  }

  assert {
    condition = [
      for s in jsondecode(aws_iam_role_policy.worker.policy).Statement : s.Condition if s.Sid == "TellMissingFromForbidden"
    ] == [{ StringLike = { "s3:prefix" = ["rounds/*"] } }]
    error_message = "The worker must be able to list neither models nor the whole bucket."
  }

  assert {
    condition     = jsondecode(aws_iam_role.worker.assume_role_policy).Statement[0].Principal == { Service = "lambda.amazonaws.com" }
    error_message = "Only Lambda may take the worker's role."
  }
}

run "the_workers_role_has_the_path_and_the_boundary_that_are_given" {
  module {
    source = "./lane"
  }

  variables {
    iam = { path = "/federation/", permissions_boundary = "arn:aws:iam::123456789012:policy/boundary" }
  }

  assert {
    condition     = aws_iam_role.worker.path == "/federation/" && aws_iam_role.worker.permissions_boundary == "arn:aws:iam::123456789012:policy/boundary"
    error_message = "The role must have the given path and boundary."
  }
}

run "the_worker_may_use_the_key_when_there_is_one" {
  module {
    source = "./lane"
  }

  variables {
    bucket = { name = "fedagg-test", arn = "arn:aws:s3:::fedagg-test", kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/given" }
  }

  assert {
    condition = [
      for s in jsondecode(aws_iam_role_policy.worker.policy).Statement : [s.Action, s.Resource] if s.Sid == "UseObjectKey"
    ] == [[["kms:Decrypt", "kms:GenerateDataKey"], ["arn:aws:kms:us-east-1:123456789012:key/given"]]]
    error_message = "The worker must be allowed to decrypt and encrypt with kms_key_arn, and with no other key."
  }
}

run "the_deployment_output_says_what_was_deployed" {
  module {
    source = "./lane"
  }

  assert {
    condition = output.deployment == {
      shards                = 4
      queue_url             = "https://sqs.us-east-1.amazonaws.com/123456789012/fedagg-test-shards-4"
      queue_arn             = "arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-4"
      dead_letter_queue_url = "https://sqs.us-east-1.amazonaws.com/123456789012/fedagg-test-shards-4-dead-letters"
      dead_letter_queue_arn = "arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-4-dead-letters"
      function_name         = "fedagg-test-shards-4"
      memory_mb             = 256
      timeout_s             = 842
      ephemeral_storage_mb  = 988
      topology              = "grads-sharding"
      cpu_architecture      = "arm64"
      maximum_concurrency   = 4
      max_receive_count     = 5
    }
    error_message = "Unexpected output: ${jsonencode(output.deployment)}"
  }
}

run "a_lane_that_no_function_can_run_is_refused_when_planning" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    sizing = { model_bytes = 30000000000, clients = 20, function_memory_cap_mb = 3008 }
  }

  expect_failures = [aws_lambda_function.worker]
}

run "a_missing_zip_is_noticed_when_planning" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    function = {
      package_path       = "tests/no-such.zip"
      runtime            = "python3.13"
      cpu_architecture   = "arm64"
      log_level          = "INFO"
      log_retention_days = 30
    }
  }

  expect_failures = [aws_lambda_function.worker]
}

run "functions_take_jobs_unless_workers_do_all_of_it" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    delivery = { functions_enabled = false, max_receive_count = 5 }
  }

  assert {
    condition     = aws_lambda_event_source_mapping.jobs.enabled == false
    error_message = "With functions_enabled = false only `orchestrator worker` may take jobs."
  }
}
