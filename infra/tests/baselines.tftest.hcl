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
    defaults = { arn = "arn:aws:iam::123456789012:role/fedagg-test-lifl" }
  }

  mock_resource "aws_lambda_function" {
    defaults = { arn = "arn:aws:lambda:us-east-1:123456789012:function:fedagg-test-lifl" }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/fedagg-test-lifl" }
  }
}

variables {
  enabled      = true
  name_prefix  = "fedagg-test"
  bucket       = { name = "fedagg-test", arn = "arn:aws:s3:::fedagg-test" }
  result_queue = { url = "https://sqs.us-east-1.amazonaws.com/123456789012/results", arn = "arn:aws:sqs:us-east-1:123456789012:results" }
  sizing       = { model_bytes = 100000000, clients = 27, function_memory_cap_mb = 3008 }
  delivery     = { functions_enabled = true, max_receive_count = 5 }
  function = {
    package_path       = "tests/baselines.tftest.hcl" # any file: the mocked provider does not open it
    runtime            = "python3.13"
    cpu_architecture   = "arm64"
    log_level          = "INFO"
    log_retention_days = 30
  }
}

run "both_trees_get_a_lane_whose_function_holds_the_whole_model" {
  module {
    source = "./baselines"
  }

  # 190.7 MB of float64 sums, and 1.25 x 96.1 MB for a worker: 311 MB, in steps of 64.
  assert {
    condition     = output.lanes["lambda-fl"].deployment.memory_mb == 320 && output.lanes["lifl"].deployment.memory_mb == 320
    error_message = "Expected 320 MB, got ${jsonencode({ for tree, lane in output.lanes : tree => lane.deployment.memory_mb })}."
  }

  # The leaves: ceil(27 / 6) and 27 / 3.
  assert {
    condition     = output.lanes["lambda-fl"].deployment.maximum_concurrency == 5 && output.lanes["lifl"].deployment.maximum_concurrency == 9
    error_message = "Expected 5 and 9 at a time, got ${jsonencode({ for tree, lane in output.lanes : tree => lane.deployment.maximum_concurrency })}."
  }

  assert {
    condition     = length(output.refused) == 0
    error_message = "Expected no tree to be refused, got ${jsonencode(output.refused)}."
  }
}

run "nothing_is_deployed_unless_asked_for" {
  module {
    source = "./baselines"
  }

  variables {
    enabled = false
    sizing  = { model_bytes = 10000000000, clients = 27, function_memory_cap_mb = 3008 }
  }

  assert {
    condition     = length(output.lanes) == 0 && length(output.refused) == 0
    error_message = "Expected no lanes and no reasons, got ${jsonencode(output.refused)}."
  }
}

run "a_cap_that_forbids_the_trees_is_a_warning_that_says_what_they_need_and_no_lanes" {
  command = plan

  module {
    source = "./baselines"
  }

  variables {
    sizing = { model_bytes = 2000000000, clients = 27, function_memory_cap_mb = 3008 }
  }

  expect_failures = [check.lambda_fl_fits, check.lifl_fits]

  assert {
    condition     = length(output.lanes) == 0 && strcontains(output.refused["lifl"], "needs 3968 MB for a model of 2000000000 bytes; function_memory_cap_mb is 3008.")
    error_message = "Expected no lanes and a reason, got ${jsonencode(output.refused)}."
  }
}

run "a_higher_cap_admits_them" {
  command = plan

  module {
    source = "./baselines"
  }

  variables {
    sizing = { model_bytes = 2000000000, clients = 27, function_memory_cap_mb = 10240 }
  }

  assert {
    condition     = length(output.refused) == 0
    error_message = "Expected no tree to be refused, got ${jsonencode(output.refused)}."
  }
}

run "partial_sums_above_a_single_put_are_refused_whatever_the_cap" {
  command = plan

  module {
    source = "./baselines"
  }

  variables {
    sizing = { model_bytes = 2700000000, clients = 27, function_memory_cap_mb = 10240 }
  }

  expect_failures = [check.lambda_fl_fits, check.lifl_fits]

  assert {
    condition     = strcontains(output.refused["lambda-fl"], "a single PUT takes 5 GiB")
    error_message = "Expected the PUT limit, got ${jsonencode(output.refused)}."
  }
}

# 318 x 212 MB at 75 MB/s are 898.9 s. The requests for 317 inputs take another 2.0 s.
run "a_tree_that_only_its_requests_make_too_slow_is_left_out_and_the_plan_succeeds" {
  command = plan

  module {
    source = "./baselines"
  }

  variables {
    sizing = { model_bytes = 106000000, clients = 100000, function_memory_cap_mb = 3008 }
  }

  expect_failures = [check.lambda_fl_fits]

  assert {
    condition     = keys(output.lanes) == ["lifl"] && strcontains(output.refused["lambda-fl"], "takes about 901 s for 100000 clients")
    error_message = "Expected a lane for lifl and a reason for lambda-fl, got ${jsonencode(output.refused)}."
  }
}

run "the_given_memory_is_for_sharded_lanes_only" {
  command = plan

  module {
    source = "./baselines"
  }

  variables {
    sizing = { model_bytes = 100000000, clients = 27, function_memory_cap_mb = 3008, memory_mb_override = 128 }
  }

  assert {
    condition     = output.lanes["lifl"].deployment.memory_mb == 320
    error_message = "An aggregator needs memory for the complete model, got ${output.lanes["lifl"].deployment.memory_mb} MB."
  }
}

run "aggregators_write_partial_sums_and_models_and_nothing_else" {
  module {
    source = "./lane"
  }

  variables {
    name     = "fedagg-test-lifl"
    topology = "lifl"
  }

  assert {
    condition = (
      aws_lambda_function.worker.handler == "lambdas.tree_average.handler"
      && toset(one([for s in jsondecode(aws_iam_role_policy.worker.policy).Statement : s.Resource if s.Sid == "WriteShards"])) == toset(["arn:aws:s3:::fedagg-test/models/*/global.safetensors", "arn:aws:s3:::fedagg-test/rounds/*/partials/*"])
    )
    error_message = "Expected the trees' handler, writing partials and models: ${aws_iam_role_policy.worker.policy}"
  }
}
