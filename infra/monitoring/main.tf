locals {
  alarm_actions = [for topic in aws_sns_topic.alarms : topic.arn]
}

################################################################################
# Alarms
################################################################################

# Jobs that failed max_receive_count times: their round cannot finish until an operator acts.
resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  for_each = var.lanes

  alarm_name          = "${each.value.function_name}-dead-letters"
  alarm_description   = "Jobs failed and will not be retried. Look at them in ${each.value.dead_letter_queue_name} and at the function's log, then send them back."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = each.value.dead_letter_queue_name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.alarm_actions
  ok_actions          = local.alarm_actions
}

# Crashes, timeouts and exhausted memory. A worker that returns its job for another delivery does not count as an error.
resource "aws_cloudwatch_metric_alarm" "errors" {
  for_each = var.lanes

  alarm_name          = "${each.value.function_name}-errors"
  alarm_description   = "The function crashed or ran out of time or memory in the last five minutes."
  namespace           = "AWS/Lambda"
  metric_name         = "Errors"
  dimensions          = { FunctionName = each.value.function_name }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.alarm_actions
  ok_actions          = local.alarm_actions
}

# The account had no function left to run. The job stays queued for the queue's visibility timeout, and each such delivery
# counts as one of its max_receive_count.
resource "aws_cloudwatch_metric_alarm" "throttles" {
  for_each = var.lanes

  alarm_name          = "${each.value.function_name}-throttles"
  alarm_description   = "The account's concurrency is used up. Jobs wait, and may end as failed. Raise the quota, or lower maximum_concurrency."
  namespace           = "AWS/Lambda"
  metric_name         = "Throttles"
  dimensions          = { FunctionName = each.value.function_name }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.alarm_actions
  ok_actions          = local.alarm_actions
}

################################################################################
# Notification
################################################################################

resource "aws_sns_topic" "alarms" {
  #checkov:skip=CKV_AWS_26:CloudWatch cannot publish to a topic under the AWS-managed key; alarms name queues and functions only
  for_each = toset(var.alarm_email[*])

  name = "${var.name_prefix}-alarms"
}

resource "aws_sns_topic_subscription" "alarms" {
  for_each = toset(var.alarm_email[*])

  topic_arn = aws_sns_topic.alarms[each.key].arn
  protocol  = "email"
  endpoint  = each.key
}
