mock_provider "aws" {
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:fedagg-test-alarms" }
  }
}

variables {
  name_prefix = "fedagg-test"
  lanes = {
    "4" = { function_name = "fedagg-test-shards-4", dead_letter_queue_name = "fedagg-test-shards-4-dead-letters" }
  }
}

run "one_failed_job_raises_the_alarm" {
  module {
    source = "./monitoring"
  }

  assert {
    condition = (
      aws_cloudwatch_metric_alarm.dead_letters["4"].dimensions == tomap({ QueueName = "fedagg-test-shards-4-dead-letters" }) &&
      aws_cloudwatch_metric_alarm.dead_letters["4"].metric_name == "ApproximateNumberOfMessagesVisible" &&
      aws_cloudwatch_metric_alarm.dead_letters["4"].comparison_operator == "GreaterThanThreshold" &&
      aws_cloudwatch_metric_alarm.dead_letters["4"].threshold == 0
    )
    error_message = "Any message in the dead-letter queue must raise the alarm."
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.errors["4"].dimensions == tomap({ FunctionName = "fedagg-test-shards-4" })
    error_message = "The error alarm must watch the lane's function."
  }
}

run "one_throttled_function_raises_the_alarm" {
  module {
    source = "./monitoring"
  }

  assert {
    condition = (
      aws_cloudwatch_metric_alarm.throttles["4"].dimensions == tomap({ FunctionName = "fedagg-test-shards-4" }) &&
      aws_cloudwatch_metric_alarm.throttles["4"].metric_name == "Throttles" &&
      aws_cloudwatch_metric_alarm.throttles["4"].threshold == 1
    )
    error_message = "Throttled functions must raise an alarm."
  }
}

run "alarms_reach_the_address_that_is_given" {
  module {
    source = "./monitoring"
  }

  variables {
    alarm_email = "oncall@example.org"
  }

  assert {
    condition     = aws_sns_topic_subscription.alarms["oncall@example.org"].endpoint == "oncall@example.org"
    error_message = "The address must be subscribed."
  }

  assert {
    condition = alltrue([
      for alarm in [aws_cloudwatch_metric_alarm.dead_letters["4"], aws_cloudwatch_metric_alarm.errors["4"], aws_cloudwatch_metric_alarm.throttles["4"]] :
      alarm.alarm_actions == toset(["arn:aws:sns:us-east-1:123456789012:fedagg-test-alarms"])
    ])
    error_message = "All alarms must publish to the topic."
  }
}
