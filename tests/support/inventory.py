"""The resources that an AWS account or an emulator lists, of every type that infra/ creates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.aws.clients import make_client


@dataclass(frozen=True)
class Inventory:
    """The resources in one region.

    Attributes:
        prefix: part of the name of every resource of this test run.
        shared: others use the account too, so only names with the prefix are listed.
    """

    region: str
    endpoint_url: str | None
    prefix: str
    shared: bool

    def names(self) -> list[str]:
        """All resources, each as `type name`, sorted."""
        return sorted(f"{kind} {name}" for kind, name in self._all() if not self.shared or self.prefix in name)

    def _all(self) -> Iterator[tuple[str, str]]:
        for item in self._pages("s3", "list_buckets", "Buckets"):
            yield "bucket", item["Name"]
        for item in self._pages("sqs", "list_queues", "QueueUrls"):
            yield "queue", item
        for item in self._pages("lambda", "list_functions", "Functions"):
            yield "function", item["FunctionName"]
        for item in self._pages("lambda", "list_event_source_mappings", "EventSourceMappings"):
            yield "mapping", item["FunctionArn"]
        for item in self._pages("iam", "list_roles", "Roles"):
            yield "role", item["RoleName"]
        for item in self._pages("iam", "list_policies", "Policies", Scope="Local"):
            yield "policy", item["PolicyName"]
        for item in self._pages("logs", "describe_log_groups", "logGroups"):
            yield "log group", item["logGroupName"]
        for item in self._pages("cloudwatch", "describe_alarms", "MetricAlarms"):
            yield "alarm", item["AlarmName"]
        for item in self._pages("sns", "list_topics", "Topics"):
            yield "topic", item["TopicArn"]
        for item in self._pages("kms", "list_aliases", "Aliases"):
            # A deleted key stays listed for days until AWS removes it; its alias is removed at once.
            if not item["AliasName"].startswith("alias/aws/"):
                yield "key alias", item["AliasName"]

    def _pages(self, service: str, operation: str, what: str, **arguments: Any) -> Iterator[Any]:
        client = make_client(service, self.region, self.endpoint_url)
        for page in client.get_paginator(operation).paginate(**arguments):
            yield from page.get(what, [])
