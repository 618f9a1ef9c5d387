"""What the steps of a round share: the coordinator's context, an attempt to average, and the attempt's outcome."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import Result
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.progress import Narration
from orchestrator.rounds.lease import Lease
from orchestrator.rounds.norms import Norms
from orchestrator.rounds.request import RoundRecord, RoundRequest


class Clock:
    """Measures the seconds that each step of a round takes."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._steps: dict[str, float] = {}

    def mark(self, step: str) -> None:
        """Add the time since the last mark to a step."""
        now = time.monotonic()
        self._steps[step] = self._steps.get(step, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Seconds by step, and `total`: the seconds since the clock was made."""
        return {**self._steps, "total": time.monotonic() - self._began}


@dataclass(frozen=True)
class RoundContext:
    """A round as its coordinator sees it: the record, the deployment, and the lease that this process holds.

    With `redrive`, jobs that failed on every try are queued again. Without it they fail the round again.
    """

    aws: AwsClients
    deployment: Deployment
    record: RoundRecord
    lease: Lease
    narration: Narration
    redrive: bool = False
    clock: Clock = field(default_factory=Clock)

    @property
    def bucket(self) -> Bucket:
        """The deployment's bucket."""
        return self.aws.bucket(self.deployment.bucket)

    @property
    def request(self) -> RoundRequest:
        """The options with which the round was opened."""
        return self.record.request

    @property
    def round_id(self) -> str:
        """The round's id."""
        return self.record.round_id


@dataclass(frozen=True)
class Attempt:
    """One attempt to average a round: a revision of its manifest, on the lane that averages it.

    Attributes:
        resumed: an earlier coordinator may have queued jobs of this revision.
        failed_tries: the results of tries that failed and are repeated, of this attempt and of earlier ones. The steps
            add to the list.
    """

    context: RoundContext
    manifest: RoundManifest
    lane: Lane
    resumed: bool
    failed_tries: list[Result] = field(default_factory=list)

    @property
    def aws(self) -> AwsClients:
        """The clients of S3 and SQS."""
        return self.context.aws

    @property
    def bucket(self) -> Bucket:
        """The deployment's bucket."""
        return self.context.bucket

    @property
    def patience_s(self) -> float:
        """How long the coordinator waits without any job being finished, seconds."""
        # The queue delivers a job again after 6 times the function's timeout (infra/lane), max_receive_count times.
        queue_s = 6.0 * self.lane.timeout_s * self.lane.max_receive_count + 60
        return self.context.request.timeout_s or queue_s


@dataclass(frozen=True)
class Averaged:
    """The outcome of an attempt, for the publication and the report. It contains only what arrived in result messages.

    Attributes:
        results: the newest result of every job, in the order of the jobs.
        digests: SHA-256 by shard. A tree's global model is shard 0.
        norms: L2 norm by client; None where they are not known.
        levels: one entry for each level of a tree, as the report shows it; None for shards.
    """

    results: Sequence[Result] = ()
    digests: Mapping[int, str] = field(default_factory=dict)
    norms: Norms | None = None
    levels: Sequence[Mapping[str, Any]] | None = None
