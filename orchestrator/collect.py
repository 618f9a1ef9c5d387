"""From queued jobs to what they store: results as they come, S3 as the truth."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lambdas.contract import RoundManifest, ShardJob, ShardResult, sha256_hex
from lambdas.trees import TreeJob
from orchestrator.aws import Clients
from orchestrator.deployment import Deployment, Lane
from orchestrator.errors import RoundFailed
from orchestrator.messages import Results, dead_letters, forget_dead_letters
from orchestrator.stored import StoredShard, stored_shards

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# How often S3 is asked without any message.
_LOOK_EVERY_S = 15.0


class BadShard(RoundFailed):
    """A job that no delivery can do, because of an update: the round is over."""

    def __init__(self, message: str, result: ShardResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass
class Collection:
    """What is known of a step's jobs, by number: stored in S3, and reported by workers (the newest result of each)."""

    stored: dict[int, StoredShard] = field(default_factory=dict)
    results: dict[int, ShardResult] = field(default_factory=dict)
    retries: list[ShardResult] = field(default_factory=list)

    def digests(self) -> dict[int, str]:
        """SHA-256 of the shards whose workers reported one."""
        return {shard: result.sha256 for shard, result in self.results.items() if result.sha256 is not None}


class Step(Protocol):
    """Jobs that are awaited together, by number: the shards of a round, or some aggregators of one level of a tree.

    Attributes:
        wanted: the numbers of all of them.
        noun: what they are, in the plural.
    """

    @property
    def wanted(self) -> Set[int]:
        """The numbers of all jobs."""

    @property
    def noun(self) -> str:
        """What they make, in the plural."""

    def name(self, number: int) -> str:
        """One of them, in words."""

    def number_of(self, message: ShardJob | TreeJob | ShardResult) -> int | None:
        """Which of them a job or a result of this round is about; None for any other."""

    def stored(self) -> Set[int] | None:
        """Which of them S3 holds; None where the round is published or aborted."""


@dataclass(frozen=True)
class ShardStep:
    """All shards of a round."""

    s3: S3Client
    bucket: str
    manifest: RoundManifest
    noun: str = "shards"

    @property
    def wanted(self) -> Set[int]:
        return frozenset(range(self.manifest.shards))

    def name(self, number: int) -> str:
        return f"shard {number} of {self.manifest.shards}"

    def number_of(self, message: ShardJob | TreeJob | ShardResult) -> int | None:
        return None if isinstance(message, TreeJob) else message.shard

    def stored(self) -> Set[int] | None:
        found = stored_shards(self.s3, self.bucket, self.manifest)
        return None if found is None else set(found)


def await_shards(
    clients: Clients,
    deployment: Deployment,
    lane: Lane,
    manifest: RoundManifest,
    *,
    collection: Collection,
    timeout_s: float,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Wait until every shard is stored, filling `collection`; as `await_step`."""
    step = ShardStep(clients.s3, deployment.bucket, manifest)
    await_step(clients, deployment, lane, manifest, step, collection=collection, timeout_s=timeout_s, progress=progress)


def await_step(
    clients: Clients,
    deployment: Deployment,
    lane: Lane,
    manifest: RoundManifest,
    step: Step,
    *,
    collection: Collection,
    timeout_s: float,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Wait until every job of a step is done, filling `collection`.

    Args:
        timeout_s: how long to wait without any job being finished.
        progress: called with the number of jobs that are newly finished.

    Raises:
        BadShard: an update cannot be averaged; names client, tensor and reason.
        RoundFailed: a job is in the dead-letter queue, or nothing happened for `timeout_s`.
    """
    digest = sha256_hex(manifest.to_bytes())
    results = Results(clients, deployment, manifest.round_id, digest)
    done = set(collection.stored)
    looked = moved = time.monotonic()
    forget_dead_letters(clients, lane, digest)
    # Until the queue has been empty once, a job's last try may be one that an earlier run of this round gave up on.
    earlier = True
    while not step.wanted <= done:
        received = results.receive()
        earlier = earlier and bool(received)
        for result in received:
            number = step.number_of(result)
            if number is None or number not in step.wanted:
                continue
            if result.status == "failed":
                raise BadShard(
                    f"Round {manifest.round_id}: {step.name(number)}: {result.error}. Nothing was published.", result
                )
            if result.status == "retrying":
                collection.retries.append(result)
                log.warning(
                    "%s, try %d of %d: %s",
                    step.name(number),
                    result.receive_count,
                    lane.max_receive_count,
                    result.error,
                )
                if result.receive_count >= lane.max_receive_count and number not in done and not earlier:
                    raise _gave_up(manifest, lane, step, number, collection)
                continue
            collection.results[number] = result
            if number not in done:
                done.add(number)
                moved = time.monotonic()
                progress(1)
        now = time.monotonic()
        if now - looked < _LOOK_EVERY_S:
            continue
        looked = now
        stored = step.stored()
        if stored is None:
            return  # another orchestrator has published or aborted it; publish() finds out
        if stored - done:
            progress(len(stored - done))
            done |= stored
            moved = now
        for job in dead_letters(clients, lane, digest).values():
            number = step.number_of(job)
            if number is not None and number in step.wanted - done:
                raise _gave_up(manifest, lane, step, number, collection)
        if now - moved > timeout_s:
            missing = sorted(step.wanted - done)
            raise RoundFailed(
                f"Round {manifest.round_id}: {len(missing)} of {len(step.wanted)} {step.noun} (first: {missing[0]}) "
                f"made no progress for {timeout_s:.0f} s. Look at the log of {lane.function_name}; the same "
                "start-round continues the round."
            )


def _gave_up(manifest: RoundManifest, lane: Lane, step: Step, number: int, collection: Collection) -> RoundFailed:
    causes = [r.error for r in collection.retries if step.number_of(r) == number and r.error]
    cause = (
        causes[-1] if causes else f"no result was sent (out of memory or time?); see the log of {lane.function_name}"
    )
    return RoundFailed(
        f"Round {manifest.round_id}: {step.name(number)} failed {lane.max_receive_count} times and is "
        f"in the dead-letter queue {lane.dead_letter_queue_url}. Last cause: {cause}. Nothing was published; when the "
        "cause is gone, the same start-round continues the round."
    )
