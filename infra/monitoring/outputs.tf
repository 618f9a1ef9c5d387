output "alarm_names" {
  description = "Names of the alarms. For dashboards and composite alarms."
  value = sort(concat(
    [for alarm in aws_cloudwatch_metric_alarm.dead_letters : alarm.alarm_name],
    [for alarm in aws_cloudwatch_metric_alarm.errors : alarm.alarm_name],
    [for alarm in aws_cloudwatch_metric_alarm.throttles : alarm.alarm_name],
  ))
}

output "topic_arn" {
  description = "ARN of the alarms' topic, null without alarm_email. For further subscriptions."
  value       = one([for topic in aws_sns_topic.alarms : topic.arn])
}
