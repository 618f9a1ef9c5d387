"""An orchestrator in a process of its own, killed at a chosen call to AWS: `python -m tests.support.kill_points`.

The kill is a handler of botocore's events before and after a call, so the product's code is unchanged.
The arguments are one JSON document on standard input.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from orchestrator.aws.clients import AwsClients, connect
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.rounds import lease, queues, wait
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round


@dataclass(frozen=True)
class KillPoint:
    """Before or after the n-th call of an operation on keys that match. After: S3 or SQS has carried it out."""

    when: str
    operation: str
    key: str = ""
    nth: int = 1

    @property
    def service(self) -> str:
        return "sqs" if "Message" in self.operation else "s3"


def arm(aws: AwsClients, point: KillPoint) -> None:
    """Let this process send itself SIGKILL at the kill point."""
    calls = itertools.count(1)
    events = getattr(aws, point.service).meta.events

    def remember(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
        context["key"] = params.get("Key", "")

    def strike(context: dict[str, Any], **_: object) -> None:
        if re.search(point.key, context["key"]) and next(calls) == point.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    events.register(f"before-parameter-build.{point.service}.{point.operation}", remember)
    events.register(f"{point.when}-call.{point.service}.{point.operation}", strike)


def impatient() -> None:
    """Shorten the waits. Everything else is as users run it."""
    patch = pytest.MonkeyPatch()  # it refuses names that do not exist
    patch.setattr(queues, "_WAIT_S", 1)
    patch.setattr(wait, "_LOOK_EVERY_S", 0.2)
    patch.setattr(lease, "WATCH_EVERY_S", 0.1)
    patch.setattr(queues, "_BATCH", 1)  # so that "half queued" exists with few shards


def document(deployment: Deployment, request: RoundRequest, point: KillPoint | None) -> str:
    """The JSON document that the process reads from standard input; without a point it is not killed."""
    return json.dumps(
        {
            "deployment": asdict(deployment),
            "request": asdict(request),
            "point": asdict(point) if point else None,
        }
    )


def deployment_of(fields: dict[str, Any]) -> Deployment:
    """The deployment whose `asdict` was written as JSON, without its trees."""
    lanes = {int(shards): Lane(**lane) for shards, lane in fields["lanes"].items()}
    return Deployment(**{**fields, "lanes": lanes})


def main() -> None:
    given = json.load(sys.stdin)
    deployment = deployment_of(given["deployment"])
    aws = connect(deployment.region, deployment.endpoint_url)
    impatient()
    if given["point"]:
        arm(aws, KillPoint(**given["point"]))
    report = start_round(aws, deployment, RoundRequest(**given["request"]))
    print(json.dumps(report.document))


if __name__ == "__main__":
    main()
