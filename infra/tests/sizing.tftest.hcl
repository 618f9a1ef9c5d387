# The sizing rule at points worked out by hand from the constants in orchestrator/planning/sizing.json: a worker needs 96 MB and
# 4 MB per 1000 clients, a quarter more is kept free, memory comes in steps of 64 MB from 256 MB; it reads 75 MB/s, or
# what its CPU share allows at 1.7 CPU seconds per GB, and needs 3 ms of a CPU per client; the timeout is four times the expected time, 60 to 900 s.

mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/fedagg-test" }
  }

  mock_resource "aws_lambda_function" {
    defaults = { arn = "arn:aws:lambda:us-east-1:123456789012:function:fedagg-test" }
  }

  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:us-east-1:123456789012:fedagg-test" }
  }
}

variables {
  name         = "fedagg-test"
  shards       = 1
  bucket       = { name = "fedagg-test", arn = "arn:aws:s3:::fedagg-test" }
  result_queue = { url = "https://sqs.us-east-1.amazonaws.com/123456789012/results", arn = "arn:aws:sqs:us-east-1:123456789012:results" }
  model_bytes  = 1000
  clients      = 20
  package_path = "tests/sizing.tftest.hcl" # any file: the mocked provider does not open it
}

################################################################################
# Memory
################################################################################

run "a_small_round_gets_the_least_memory" {
  command = plan

  module {
    source = "./lane"
  }

  assert {
    condition     = aws_lambda_function.worker.memory_size == 256
    error_message = "Expected 256 MB of memory, got ${aws_lambda_function.worker.memory_size}."
  }
}

run "memory_does_not_grow_with_the_model" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 20000000000
    shards      = 64
  }

  assert {
    condition     = aws_lambda_function.worker.memory_size == 256
    error_message = "Expected 256 MB of memory, got ${aws_lambda_function.worker.memory_size}."
  }
}

run "memory_is_still_the_least_just_below_the_step" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    clients = 27200
  }

  # (96 + 108.8) x 1.25 = 256
  assert {
    condition     = aws_lambda_function.worker.memory_size == 256
    error_message = "Expected 256 MB of memory, got ${aws_lambda_function.worker.memory_size}."
  }
}

run "one_more_client_takes_the_next_step" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    clients = 27201
  }

  assert {
    condition     = aws_lambda_function.worker.memory_size == 320
    error_message = "Expected 320 MB of memory, got ${aws_lambda_function.worker.memory_size}."
  }
}

run "a_step_that_is_filled_exactly_is_enough" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    clients = 52800
  }

  # (96 + 211.2) x 1.25 = 384; 211.2 has no exact binary form and must not tip it over
  assert {
    condition     = aws_lambda_function.worker.memory_size == 384
    error_message = "Expected 384 MB of memory, got ${aws_lambda_function.worker.memory_size}."
  }
}

run "the_most_clients_fit_in_640_mb" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    clients = 100000
  }

  # (96 + 400) x 1.25 = 620
  assert {
    condition     = aws_lambda_function.worker.memory_size == 640
    error_message = "Expected 640 MB of memory, got ${aws_lambda_function.worker.memory_size}."
  }
}

run "memory_can_be_given" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    memory_mb_override = 1769
  }

  assert {
    condition     = aws_lambda_function.worker.memory_size == 1769
    error_message = "Expected 1769 MB of memory, got ${aws_lambda_function.worker.memory_size}."
  }
}

run "memory_above_the_accounts_cap_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    clients                = 100000
    function_memory_cap_mb = 512
  }

  expect_failures = [aws_lambda_function.worker]
}

run "memory_at_the_accounts_cap_is_allowed" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    clients                = 100000
    function_memory_cap_mb = 640
  }

  assert {
    condition     = aws_lambda_function.worker.memory_size == 640
    error_message = "Expected 640 MB of memory, got ${aws_lambda_function.worker.memory_size}."
  }
}

run "given_memory_above_the_accounts_cap_is_refused_too" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    memory_mb_override = 3072
  }

  expect_failures = [aws_lambda_function.worker]
}

################################################################################
# Timeout
################################################################################

run "the_least_timeout_is_a_minute" {
  command = plan

  module {
    source = "./lane"
  }

  assert {
    condition     = aws_lambda_function.worker.timeout == 60
    error_message = "Expected 60 s of timeout, got ${aws_lambda_function.worker.timeout}."
  }
}

run "the_timeout_is_four_times_the_expected_time" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 409044504
    shards      = 4
  }

  # 21 x 102,261,126 B at 75 MB/s = 28.63 s, 20 x 3 ms in 256 x 0.000565291 vCPU = 0.41 s; four times that, rounded up
  assert {
    condition     = aws_lambda_function.worker.timeout == 117
    error_message = "Expected 117 s of timeout, got ${aws_lambda_function.worker.timeout}."
  }
}

run "a_shard_is_rounded_up_to_whole_bytes" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 995884763
    shards      = 7
  }

  # 21 x 142,269,252 B at 75 MB/s + 0.41 s = 40.25000003 s: 162 s, where 1/7 of the bytes would give 161 s
  assert {
    condition     = aws_lambda_function.worker.timeout == 162
    error_message = "Expected 162 s of timeout, got ${aws_lambda_function.worker.timeout}."
  }
}

run "more_shards_shorten_the_timeout" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 20000000000
    shards      = 32
  }

  # 21 x 625 MB at 75 MB/s = 175 s, and 0.41 s
  assert {
    condition     = aws_lambda_function.worker.timeout == 702
    error_message = "Expected 702 s of timeout, got ${aws_lambda_function.worker.timeout}."
  }
}

run "a_slow_cpu_lengthens_the_timeout" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes        = 1000000000
    shards             = 7
    memory_mb_override = 128
  }

  # 128 MB are 0.0724 vCPU: 42.6 MB/s instead of 75 MB/s, and 0.83 s for 20 requests
  assert {
    condition     = aws_lambda_function.worker.timeout == 286
    error_message = "Expected 286 s of timeout, got ${aws_lambda_function.worker.timeout}."
  }
}

run "the_most_timeout_is_lambdas" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 5000000000
    shards      = 16
    clients     = 200
  }

  # 201 x 312.5 MB at 75 MB/s = 837.5 s, and 4.1 s: it fits, with less than four times to spare
  assert {
    condition     = aws_lambda_function.worker.timeout == 900
    error_message = "Expected 900 s of timeout, got ${aws_lambda_function.worker.timeout}."
  }
}

run "a_shard_that_takes_longer_than_lambda_allows_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 5000000000
    shards      = 8
    clients     = 200
  }

  expect_failures = [aws_lambda_function.worker]
}

run "just_at_lambdas_limit_is_allowed" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 673460762
    clients     = 99
  }

  # 100 x 673,460,762 B at 75 MB/s = 897.948 s, 99 x 3 ms in 256 x 0.000565291 vCPU = 2.052 s
  assert {
    condition     = aws_lambda_function.worker.timeout == 900
    error_message = "Expected 900 s of timeout, got ${aws_lambda_function.worker.timeout}."
  }
}

run "a_byte_over_lambdas_limit_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 673460763
    clients     = 99
  }

  expect_failures = [aws_lambda_function.worker]
}

################################################################################
# Room in /tmp
################################################################################

run "the_least_room_is_lambdas" {
  command = plan

  module {
    source = "./lane"
  }

  assert {
    condition     = aws_lambda_function.worker.ephemeral_storage[0].size == 512
    error_message = "Expected 512 MB of /tmp, got ${aws_lambda_function.worker.ephemeral_storage[0].size}."
  }
}

run "a_shard_of_240_mib_just_fits_the_least_room" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 251658240
  }

  assert {
    condition     = aws_lambda_function.worker.ephemeral_storage[0].size == 512
    error_message = "Expected 512 MB of /tmp, got ${aws_lambda_function.worker.ephemeral_storage[0].size}."
  }
}

run "a_byte_more_takes_a_megabyte_more" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 251658241
  }

  assert {
    condition     = aws_lambda_function.worker.ephemeral_storage[0].size == 513
    error_message = "Expected 513 MB of /tmp, got ${aws_lambda_function.worker.ephemeral_storage[0].size}."
  }
}

run "sums_of_a_hundred_clients_are_parked_beside_the_shard" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 5000000000
    shards      = 8
    clients     = 100
  }

  # 597 MiB of the shard and 192 MiB of sums
  assert {
    condition     = aws_lambda_function.worker.ephemeral_storage[0].size >= 597 + 192
    error_message = "Expected at least 789 MB of /tmp, got ${aws_lambda_function.worker.ephemeral_storage[0].size}."
  }
}

run "a_shard_of_almost_ten_gigabytes_still_fits" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 10452205568
    clients     = 1
  }

  # 9968 MiB + 272
  assert {
    condition     = aws_lambda_function.worker.ephemeral_storage[0].size == 10240
    error_message = "Expected 10240 MB of /tmp, got ${aws_lambda_function.worker.ephemeral_storage[0].size}."
  }
}

run "a_shard_larger_than_tmp_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 10452205569
    clients     = 1
  }

  expect_failures = [aws_lambda_function.worker]
}

################################################################################
# What can not be meant
################################################################################

run "a_model_of_no_bytes_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 0
  }

  expect_failures = [var.model_bytes]
}

run "a_model_of_more_than_ten_tebibytes_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 10995116277761
  }

  expect_failures = [var.model_bytes]
}

run "half_a_byte_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    model_bytes = 1.5
  }

  expect_failures = [var.model_bytes]
}

run "no_clients_are_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    clients = 0
  }

  expect_failures = [var.clients]
}

run "more_clients_than_a_round_takes_are_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    clients = 100001
  }

  expect_failures = [var.clients]
}

run "more_shards_than_parts_of_an_upload_are_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    shards = 10001
  }

  expect_failures = [var.shards]
}

run "less_memory_than_lambda_has_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    memory_mb_override = 127
  }

  expect_failures = [var.memory_mb_override]
}

run "a_cap_above_lambdas_is_refused" {
  command = plan

  module {
    source = "./lane"
  }

  variables {
    function_memory_cap_mb = 10241
  }

  expect_failures = [var.function_memory_cap_mb]
}
