"""From queued jobs to what they store: results as they come, S3 as the truth."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lambdas.protocol.manifest import Exclusion, RoundManifest
from lambdas.protocol.messages import AggregatorJob, Result, ShardJob, ShardResult
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.errors import RoundFailed
from orchestrator.rounds.queues import Results, dead_letters, log_group
from orchestrator.rounds.stored import StoredShard, stored_shards

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

# How often S3 is asked without any message.
_LOOK_EVERY_S = 15.0
# How long to wait for the results of jobs whose outputs were seen in S3 first: only the report needs them.
_GRACE_S = 2.0
# How many jobs an error names.
_NAMED = 5


class BadShard(RoundFailed):
    """A job that no delivery can do, because of an update.

    Attributes:
        result: what its worker reported; None where all shards together show it.
        bad: the clients at fault, those of other shards among them, in ascending id.
    """

    def __init__(self, message: str, result: Result | None, bad: Sequence[Exclusion] = ()) -> None:
        super().__init__(message)
        self.result = result
        self.bad = tuple(bad)


@dataclass
class Collection:
    """What is known of a step's jobs, by number: stored in S3, and reported by workers (the newest result of each).

    Attributes:
        others: results of other steps of the round, which come late.
    """

    stored: dict[int, StoredShard] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)
    retries: list[Result] = field(default_factory=list)
    others: list[Result] = field(default_factory=list)

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

    def number_of(self, message: ShardJob | AggregatorJob | Result) -> int | None:
        """Which of them a job or a result of this round is about; None for any other."""

    def stored(self) -> Set[int] | None:
        """Which of them S3 holds; None where the round is published or aborted."""


@dataclass(frozen=True)
class ShardStep:
    """All shards of a round."""

    bucket: Bucket
    manifest: RoundManifest
    noun: str = "shards"

    @property
    def wanted(self) -> Set[int]:
        return frozenset(range(self.manifest.shards))

    def name(self, number: int) -> str:
        return f"shard {number} of {self.manifest.shards}"

    def number_of(self, message: ShardJob | AggregatorJob | Result) -> int | None:
        return message.shard if isinstance(message, ShardJob | ShardResult) else None

    def stored(self) -> Set[int] | None:
        found = stored_shards(self.bucket, self.manifest)
        return None if found is None else set(found)


def await_shards(
    aws: AwsClients,
    deployment: Deployment,
    lane: Lane,
    manifest: RoundManifest,
    *,
    collection: Collection,
    timeout_s: float,
    progress: Callable[[int], object] = lambda count: None,
    still_mine: Callable[[], object] = lambda: None,
    verdicts_s: float = 0.0,
) -> None:
    """Wait until every shard is stored, filling `collection`; as `await_step`."""
    await_step(
        aws,
        deployment,
        lane,
        manifest,
        ShardStep(aws.bucket(deployment.bucket), manifest),
        collection=collection,
        timeout_s=timeout_s,
        progress=progress,
        still_mine=still_mine,
        verdicts_s=verdicts_s,
    )


def await_step(
    aws: AwsClients,
    deployment: Deployment,
    lane: Lane,
    manifest: RoundManifest,
    step: Step,
    *,
    collection: Collection,
    timeout_s: float,
    progress: Callable[[int], object] = lambda count: None,
    still_mine: Callable[[], object] = lambda: None,
    verdicts_s: float = 0.0,
) -> None:
    """Wait until every job of a step is done, filling `collection`.

    Args:
        timeout_s: how long to wait without any job being finished.
        progress: called with the number of jobs that are newly finished.
        still_mine: called again and again; raises where this process is no longer to wait.
        verdicts_s: after the first bad update, how long to wait for what other jobs find wrong with others, seconds.

    Raises:
        BadShard: an update cannot be averaged; names client, tensor and reason.
        RoundFailed: a job is in the dead-letter queue, or nothing happened for `timeout_s`.
    """
    digest = manifest.sha256
    results = Results(aws, deployment, manifest.round_id, digest)
    done = set(collection.stored)
    verdicts = _Verdicts(step.wanted, verdicts_s)
    looked = moved = time.monotonic()
    # Until the queue has been empty once, a job's last try may be one that an earlier run of this round gave up on.
    earlier = True
    while not step.wanted <= done:
        still_mine()
        received = results.receive()
        earlier = earlier and bool(received)
        for result in received:
            number = step.number_of(result)
            if number is None or number not in step.wanted:
                collection.others.append(result)
                continue
            if result.status == "failed":
                verdicts.add(number, result)
                continue
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
                    raise gave_up(manifest, lane, step, [number], collection)
                continue
            collection.results[number] = result
            if number not in done:
                done.add(number)
                moved = time.monotonic()
                progress(1)
        if verdicts.are_in(done):
            raise verdicts.error(manifest, step)
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
        dead = dead_jobs(aws, lane, step, digest) - done
        if dead:
            raise gave_up(manifest, lane, step, sorted(dead), collection)
        if now - moved > timeout_s:
            missing = sorted(step.wanted - done)
            raise RoundFailed(
                f"Round {manifest.round_id}: {len(missing)} of {len(step.wanted)} {step.noun} (first: {missing[0]}) "
                f"made no progress for {timeout_s:.0f} s. Look at the log of {lane.function_name}; `orchestrator "
                f"resume --round {manifest.round_id}` continues the round."
            )
    _await_messages(results, step, collection)


def _await_messages(results: Results, step: Step, collection: Collection) -> None:
    """Give the results of jobs whose outputs were seen in S3 first a moment to arrive: the report tells of them."""
    until = time.monotonic() + _GRACE_S
    wanted = step.wanted - set(collection.stored)
    while wanted - set(collection.results) and time.monotonic() < until:
        for result in results.receive(wait_s=1):
            number = step.number_of(result)
            if result.status == "done" and number is not None and number in step.wanted:
                collection.results[number] = result


class _Verdicts:
    """What jobs have found wrong with updates."""

    def __init__(self, wanted: Set[int], wait_s: float) -> None:
        self._wanted = wanted
        self._wait_s = wait_s
        self._until = 0.0
        self._failed: dict[int, Result] = {}

    def add(self, number: int, result: Result) -> None:
        """Note a job that no delivery can do."""
        if not self._failed:
            self._until = time.monotonic() + self._wait_s
        self._failed.setdefault(number, result)

    def are_in(self, done: Set[int]) -> bool:
        """Whether there are any, and no others are to be waited for."""
        return bool(self._failed) and (time.monotonic() >= self._until or self._wanted <= done | set(self._failed))

    def error(self, manifest: RoundManifest, step: Step) -> BadShard:
        """The first one, and all clients at fault."""
        number, result = next(iter(self._failed.items()))
        bad = {e.client: e for failed in reversed(self._failed.values()) for e in failed.bad}
        return BadShard(
            f"Round {manifest.round_id}: {step.name(number)}: {result.error}. Nothing was published.",
            result,
            [bad[client] for client in sorted(bad)],
        )


def dead_jobs(aws: AwsClients, lane: Lane, step: Step, digest: str) -> Set[int]:
    """The numbers of a step's jobs that are among the dead letters."""
    found = {step.number_of(job) for job in dead_letters(aws, lane, digest).values()}
    return {number for number in found if number is not None} & step.wanted


def gave_up(
    manifest: RoundManifest, lane: Lane, step: Step, numbers: Sequence[int], collection: Collection
) -> RoundFailed:
    """The error of a round some of whose jobs are in the dead-letter queue: names jobs, tries and causes."""
    failed = []
    for number in numbers[:_NAMED]:
        told = [result.error for result in collection.retries if step.number_of(result) == number and result.error]
        cause = told[-1] if told else silent(lane)
        failed.append(f"{step.name(number)} failed {lane.max_receive_count} times, last cause: {cause}")
    if len(numbers) > _NAMED:
        failed.append(f"and {len(numbers) - _NAMED} more {step.noun}")
    return RoundFailed(
        f"Round {manifest.round_id}: {'; '.join(failed)}. Nothing was published. The jobs are in the dead-letter queue "
        f"{lane.dead_letter_queue_url}; when the cause is gone, `orchestrator resume --round {manifest.round_id} "
        "--redrive` continues the round."
    )


def silent(lane: Lane) -> str:
    """What is known of a try that sent no result."""
    return (
        "no result was sent (killed, out of memory, or an earlier run has the result); the log group "
        f"{log_group(lane)} says more"
    )
