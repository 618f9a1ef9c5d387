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

  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::123456789012:policy/fedagg-test-orchestrator" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/fedagg-test-ci" }
  }
}

variables {
  name_prefix      = "fedagg-test"
  bucket           = { arn = "arn:aws:s3:::fedagg-test" }
  result_queue_arn = "arn:aws:sqs:us-east-1:123456789012:fedagg-test-results"
  lane_names       = ["fedagg-test-shards-?", "fedagg-test-lifl"]
}

run "the_orchestrator_may_run_rounds_and_nothing_else" {
  module {
    source = "./access"
  }

  assert {
    condition = { for s in jsondecode(aws_iam_policy.orchestrator.policy).Statement : s.Sid => [s.Action, s.Resource] } == {
      ReadAndWriteObjects   = [["s3:GetObject", "s3:PutObject"], ["arn:aws:s3:::fedagg-test/rounds/*", "arn:aws:s3:::fedagg-test/models/*"]]
      DeleteShards          = [["s3:DeleteObject"], ["arn:aws:s3:::fedagg-test/rounds/*/shards/*", "arn:aws:s3:::fedagg-test/rounds/*/partials/*"]]
      WatchAndAbortUploads  = [["s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"], ["arn:aws:s3:::fedagg-test/rounds/*", "arn:aws:s3:::fedagg-test/models/*"]]
      ListObjects           = [["s3:ListBucket"], ["arn:aws:s3:::fedagg-test"]]
      ListUploads           = [["s3:ListBucketMultipartUploads"], ["arn:aws:s3:::fedagg-test"]]
      SendJobs              = [["sqs:SendMessage", "sqs:GetQueueAttributes"], ["arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-?", "arn:aws:sqs:us-east-1:123456789012:fedagg-test-lifl"]]
      ReceiveResults        = [["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"], ["arn:aws:sqs:us-east-1:123456789012:fedagg-test-results"]]
      LookThroughFailedJobs = [["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"], ["arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-?-dead-letters", "arn:aws:sqs:us-east-1:123456789012:fedagg-test-lifl-dead-letters"]]
    }
    error_message = "The orchestrator's permissions are not exactly the documented ones: ${aws_iam_policy.orchestrator.policy}"
  }
}

run "the_orchestrator_lists_rounds_and_models_not_the_whole_bucket" {
  module {
    source = "./access"
  }

  assert {
    condition = [
      for s in jsondecode(aws_iam_policy.orchestrator.policy).Statement : s.Condition if s.Sid == "ListObjects"
    ] == [{ StringLike = { "s3:prefix" = ["rounds/*", "models/*"] } }]
    error_message = "A listing must name its prefix: ${aws_iam_policy.orchestrator.policy}"
  }
}

run "a_client_may_write_only_its_own_update_and_only_once" {
  module {
    source = "./access"
  }

  assert {
    condition = [
      for s in jsondecode(output.client_policy_json).Statement : s.Resource
      if s.Effect == "Allow" && contains(s.Action, "s3:PutObject")
    ] == [["arn:aws:s3:::fedagg-test/rounds/*/updates/$${aws:PrincipalTag/client}.safetensors"]]
    error_message = "A client must be held to the update that carries its own id: ${output.client_policy_json}"
  }

  assert {
    condition = [
      for s in jsondecode(output.client_policy_json).Statement : [s.Action, s.Resource, s.Condition] if s.Effect == "Deny"
      ] == [[
        ["s3:PutObject"],
        ["arn:aws:s3:::fedagg-test/rounds/*"],
        { Null = { "s3:if-none-match" = "true" }, Bool = { "s3:ObjectCreationOperation" = "true" } },
    ]]
    error_message = "An upload without If-None-Match must be denied: ${output.client_policy_json}"
  }

  assert {
    condition = [
      for s in jsondecode(output.client_policy_json).Statement : s.Resource if contains(s.Action, "s3:GetObject")
      ] == [[
        "arn:aws:s3:::fedagg-test/rounds/*/round.json",
        "arn:aws:s3:::fedagg-test/rounds/*/updates/$${aws:PrincipalTag/client}.safetensors",
        "arn:aws:s3:::fedagg-test/models/*",
    ]]
    error_message = "A client must not read other clients' updates: ${output.client_policy_json}"
  }
}

run "there_is_no_ci_role_unless_a_repository_is_named" {
  module {
    source = "./access"
  }

  assert {
    condition     = length(aws_iam_role.ci) == 0 && length(aws_iam_openid_connect_provider.github) == 0
    error_message = "GitHub must have no access without github_repository."
  }
}

run "the_ci_role_is_for_one_branch_of_one_repository" {
  module {
    source = "./access"
  }

  variables {
    ci = { github_repository = "example/federation", github_branch = "release" }
  }

  assert {
    condition = jsondecode(aws_iam_role.ci["example/federation"].assume_role_policy).Statement == [{
      Effect    = "Allow"
      Principal = { Federated = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com" }
      Action    = "sts:AssumeRoleWithWebIdentity"
      Condition = {
        StringEquals = {
          "token.actions.githubusercontent.com:aud" = "sts.amazonaws.com"
          "token.actions.githubusercontent.com:sub" = "repo:example/federation:ref:refs/heads/release"
        }
      }
    }]
    error_message = "Anybody else could take the CI role: ${aws_iam_role.ci["example/federation"].assume_role_policy}"
  }
}

run "the_ids_of_owner_and_repository_are_part_of_the_subject" {
  module {
    source = "./access"
  }

  variables {
    ci = { github_repository = "example_corp/federation", github_ids = { owner = 123456, repository = 4567890123 } }
  }

  # https://docs.github.com/actions/reference/openid-connect-reference: repo:OWNER@ID/NAME@ID:ref:refs/heads/BRANCH
  assert {
    condition = (
      jsondecode(aws_iam_role.ci["example_corp/federation"].assume_role_policy).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"]
      == "repo:example_corp@123456/federation@4567890123:ref:refs/heads/main"
    )
    error_message = "Not the subject that GitHub sends: ${aws_iam_role.ci["example_corp/federation"].assume_role_policy}"
  }
}

run "ci_can_change_code_and_read_the_state_and_nothing_else" {
  module {
    source = "./access"
  }

  variables {
    bucket = { arn = "arn:aws:s3:::fedagg-test", kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/given" }
    ci = {
      github_repository = "example/federation"
      terraform_state   = { bucket = "states", key = "fedagg/test/terraform.tfstate" }
    }
  }

  assert {
    condition = {
      for s in jsondecode(aws_iam_role_policy.ci_ship["example/federation"].policy).Statement : s.Sid => [s.Action, s.Resource]
      } == {
      ShipCode = [
        ["lambda:UpdateFunctionCode", "lambda:GetFunctionConfiguration"],
        ["arn:aws:lambda:us-east-1:123456789012:function:fedagg-test-shards-?", "arn:aws:lambda:us-east-1:123456789012:function:fedagg-test-lifl"],
      ]
      ReadState = [["s3:GetObject"], ["arn:aws:s3:::states/fedagg/test/terraform.tfstate"]]
      FindState = [["s3:ListBucket"], ["arn:aws:s3:::states"]]
    }
    error_message = "CI may do something else than ship code and read the state: ${aws_iam_role_policy.ci_ship["example/federation"].policy}"
  }
}

run "ci_reads_no_state_that_is_not_named" {
  module {
    source = "./access"
  }

  variables {
    ci = { github_repository = "example/federation" }
  }

  assert {
    condition = [
      for s in jsondecode(aws_iam_role_policy.ci_ship["example/federation"].policy).Statement : s.Sid
    ] == ["ShipCode"]
    error_message = "CI must have no access to any state: ${aws_iam_role_policy.ci_ship["example/federation"].policy}"
  }
}

run "a_worker_outside_lambda_may_do_what_the_functions_may" {
  module {
    source = "./access"
  }

  assert {
    condition = { for s in jsondecode(aws_iam_policy.worker.policy).Statement : s.Sid => [s.Action, s.Resource] } == {
      ReadRounds               = [["s3:GetObject"], ["arn:aws:s3:::fedagg-test/rounds/*"]]
      WriteShards              = [["s3:PutObject"], ["arn:aws:s3:::fedagg-test/models/*/global.safetensors", "arn:aws:s3:::fedagg-test/rounds/*/shards/*", "arn:aws:s3:::fedagg-test/rounds/*/norms/*", "arn:aws:s3:::fedagg-test/rounds/*/partials/*"]]
      FindParts                = [["s3:ListMultipartUploadParts"], ["arn:aws:s3:::fedagg-test/models/*/global.safetensors"]]
      TellMissingFromForbidden = [["s3:ListBucket"], ["arn:aws:s3:::fedagg-test"]]
      TakeJobs                 = [["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"], ["arn:aws:sqs:us-east-1:123456789012:fedagg-test-shards-?", "arn:aws:sqs:us-east-1:123456789012:fedagg-test-lifl"]]
      SendResults              = [["sqs:SendMessage"], ["arn:aws:sqs:us-east-1:123456789012:fedagg-test-results"]]
    }
    error_message = "A worker's permissions are not exactly the documented ones: ${aws_iam_policy.worker.policy}"
  }
}

run "roles_and_policies_have_the_path_and_the_boundary_that_are_given" {
  module {
    source = "./access"
  }

  variables {
    iam = { path = "/federation/", permissions_boundary = "arn:aws:iam::123456789012:policy/boundary" }
    ci  = { github_repository = "example/federation" }
  }

  assert {
    condition = alltrue([
      for one in [aws_iam_policy.orchestrator, aws_iam_policy.worker, aws_iam_role.ci["example/federation"]] : one.path == "/federation/"
    ])
    error_message = "A role or a policy has another path."
  }

  assert {
    condition     = aws_iam_role.ci["example/federation"].permissions_boundary == "arn:aws:iam::123456789012:policy/boundary"
    error_message = "The CI role must be bounded."
  }
}

run "the_ci_role_lasts_as_long_as_the_sample_job" {
  module {
    source = "./access"
  }

  variables {
    ci = { github_repository = "example/federation" }
  }

  assert {
    condition = (
      length(regexall("role-duration-seconds: ${aws_iam_role.ci["example/federation"].max_session_duration}\\b", file("../docs/examples/round.yml"))) == 1 &&
      length(regexall("timeout-minutes: ${aws_iam_role.ci["example/federation"].max_session_duration / 60}\\b", file("../docs/examples/round.yml"))) == 1
    )
    error_message = "docs/examples/round.yml expects another time than the ${aws_iam_role.ci["example/federation"].max_session_duration} s for which the role is valid."
  }
}
