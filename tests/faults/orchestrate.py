"""An orchestrator in a process of its own that is killed at a chosen call to AWS: `python -m tests.faults.orchestrate`.

The production code knows nothing of it: the kill hangs on botocore's events, around the n-th call of an operation.
Arguments: one JSON document on standard input.
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

from orchestrator.aws.clients import AwsClients, connect
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.rounds import lease, queues, wait
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round


@dataclass(frozen=True)
class KillPoint:
    """Before or after the n-th call of an operation on keys that match; `after`: S3 or SQS has done it."""

    when: str
    operation: str
    key: str = ""
    nth: int = 1

    @property
    def service(self) -> str:
        return "sqs" if "Message" in self.operation else "s3"


def arm(aws: AwsClients, point: KillPoint) -> None:
    """Make this process die at the kill point, as by `kill -9`."""
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
    """Waits for tests: everything else is as users run it."""
    queues._WAIT_S = 1
    wait._LOOK_EVERY_S = 0.2
    lease.WATCH_EVERY_S = 0.1
    queues._BATCH = 1  # so that "half queued" exists with few shards


def document(deployment: Deployment, request: RoundRequest, point: KillPoint | None) -> str:
    """What the process reads from standard input."""
    return json.dumps(
        {
            "deployment": asdict(deployment),
            "request": asdict(request),
            "point": asdict(point) if point else None,
        }
    )


def main() -> None:
    given = json.load(sys.stdin)
    fields = given["deployment"]
    fields["lanes"] = {int(m): Lane(**lane) for m, lane in fields["lanes"].items()}
    deployment = Deployment(**fields)
    aws = connect(deployment.region, deployment.endpoint_url)
    impatient()
    if given["point"]:
        arm(aws, KillPoint(**given["point"]))
    report = start_round(aws, deployment, RoundRequest(**given["request"]))
    print(json.dumps(report.document))


if __name__ == "__main__":
    main()
