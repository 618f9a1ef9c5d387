"""Waiting for queued jobs: results arrive as messages, and S3 shows which outputs are stored if messages are lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from lambdas.protocol.manifest import Exclusion
from lambdas.protocol.messages import Job, Result
from orchestrator.errors import RoundFailed
from orchestrator.rounds.context import Attempt
from orchestrator.rounds.queues import Results, dead_letters, log_group

log = logging.getLogger(__name__)

# Seconds between two looks at S3 and the dead-letter queue.
_LOOK_EVERY_S = 15.0
# When S3 shows an output before its result message arrives, wait this long for the message. Only the report needs it.
_GRACE_S = 2.0
# The number of jobs that an error names.
_NAMED = 5


class BadUpdate(RoundFailed):
    """Updates that cannot be averaged, whichever worker tries.

    Attributes:
        result: the result of the worker that found it; None where only the shards together show it.
        bad: the clients at fault, in ascending id, including those that other workers found.
    """

    def __init__(self, message: str, result: Result | None, bad: Sequence[Exclusion] = ()) -> None:
        super().__init__(message)
        self.result = result
        self.bad = tuple(bad)


@dataclass
class Collection:
    """What is known about the jobs of a step, by number.

    Attributes:
        stored: the jobs whose outputs were in S3 before the step began.
        results: the newest result of every job whose worker reported that it was done.
        others: results of other jobs of the round, which arrive late.
    """

    stored: Set[int] = frozenset()
    results: dict[int, Result] = field(default_factory=dict)
    others: list[Result] = field(default_factory=list)


class Step(Protocol):
    """Jobs that are waited for together, by number: the shards of a round, or aggregators of one level of a tree."""

    @property
    def wanted(self) -> Set[int]:
        """The numbers of all jobs of the step."""

    @property
    def noun(self) -> str:
        """What the jobs are called, in the plural."""

    def name(self, number: int) -> str:
        """One of the jobs, in words."""

    def number_of(self, message: Job | Result) -> int | None:
        """The number of a job of this round, or of the job of a result; None where it does not belong to the step."""

    def stored(self) -> Set[int] | None:
        """The jobs whose outputs S3 holds; None where the round is published or aborted."""


def wait_for_step(
    attempt: Attempt,
    step: Step,
    collection: Collection,
    progress: Callable[[int], object] = lambda count: None,
    *,
    verdicts_s: float = 0.0,
) -> None:
    """Wait until every job of a step is done.

    Args:
        collection: results are added to it. Failed tries are added to `attempt.failed_tries`.
        progress: called with the number of jobs that are newly finished.
        verdicts_s: how long to wait, after the first bad update, for the bad updates that other jobs find, seconds.

    Raises:
        BadUpdate: an update cannot be averaged; names client, tensor and reason.
        RoundFailed: a job is in the dead-letter queue, or no job was finished in `attempt.patience_s`.
    """
    waiting = _Waiting(attempt, step, collection, progress, verdicts_s)
    while not step.wanted <= waiting.done:
        attempt.context.lease.check()
        waiting.take(waiting.results.receive())
        if not waiting.look():
            return  # Another coordinator has published or aborted the round. publish() determines which.
    waiting.take_late()


class _Waiting:
    """The state of one `wait_for_step`. `done` has the numbers of the jobs that are done."""

    def __init__(
        self,
        attempt: Attempt,
        step: Step,
        collection: Collection,
        progress: Callable[[int], object],
        verdicts_s: float,
    ) -> None:
        self._attempt, self._step, self._collection, self._progress = attempt, step, collection, progress
        self.results = Results(attempt.aws, attempt.context.deployment, attempt.manifest)
        self.done = set(collection.stored)
        self._looked = self._moved = time.monotonic()
        # Until the queue has been empty once, a last try may be one that an earlier coordinator gave up on.
        self._from_earlier = True
        # The results of jobs that cannot succeed because of an update, and how long to wait for others.
        self._failed: dict[int, Result] = {}
        self._verdicts_s, self._verdicts_until = verdicts_s, 0.0

    def take(self, received: Sequence[Result]) -> None:
        """Take in what one request to the result queue returned.

        Raises:
            BadUpdate: a worker found bad updates, and no other worker's findings are waited for.
            RoundFailed: the last try of a job failed.
        """
        self._from_earlier = self._from_earlier and bool(received)
        for result in received:
            number = self._step.number_of(result)
            if number is None:
                self._collection.others.append(result)
            elif result.status == "failed":
                if not self._failed:
                    self._verdicts_until = time.monotonic() + self._verdicts_s
                self._failed.setdefault(number, result)
            elif result.status == "retrying":
                self._note_failed_try(number, result)
            else:
                self._collection.results[number] = result
                self._finished({number})
        all_known = self._step.wanted <= self.done | set(self._failed)
        if self._failed and (all_known or time.monotonic() >= self._verdicts_until):
            raise self._bad_update()

    def look(self) -> bool:
        """Look into S3 and the dead-letter queue, if that is due; False where the round has ended.

        Raises:
            RoundFailed: a job is in the dead-letter queue, or no job was finished in time.
        """
        attempt, step, now = self._attempt, self._step, time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return True
        self._looked = now
        stored = step.stored()
        if stored is None:
            return False
        self._finished(stored)
        dead = dead_jobs(attempt, step) - self.done
        if dead:
            raise gave_up(attempt, step, sorted(dead))
        if now - self._moved > attempt.patience_s:
            missing = sorted(step.wanted - self.done)
            raise RoundFailed(
                f"Round {attempt.manifest.round_id}: {len(missing)} of {len(step.wanted)} {step.noun} (first: "
                f"{missing[0]}) made no progress for {attempt.patience_s:.0f} s. Look at the log of "
                f"{attempt.lane.function_name}; `orchestrator resume --round {attempt.manifest.round_id}` continues "
                "the round."
            )
        return True

    def take_late(self) -> None:
        """Wait a moment for the results of jobs whose outputs S3 showed first. Only the report needs them."""
        until = time.monotonic() + _GRACE_S
        wanted = self._step.wanted - self._collection.stored
        while wanted - set(self._collection.results) and time.monotonic() < until:
            for result in self.results.receive(wait_s=1):
                number = self._step.number_of(result)
                if number is None:
                    self._collection.others.append(result)
                elif result.status == "done":
                    self._collection.results[number] = result
                elif result.status == "retrying":
                    self._attempt.failed_tries.append(result)

    def _finished(self, jobs: Set[int]) -> None:
        new = jobs - self.done
        if new:
            self.done |= new
            self._moved = time.monotonic()
            self._progress(len(new))

    def _note_failed_try(self, number: int, result: Result) -> None:
        self._attempt.failed_tries.append(result)
        tries = self._attempt.lane.max_receive_count
        log.warning("%s, try %d of %d: %s", self._step.name(number), result.receive_count, tries, result.error)
        if result.receive_count >= tries and number not in self.done and not self._from_earlier:
            raise gave_up(self._attempt, self._step, [number])

    def _bad_update(self) -> BadUpdate:
        """The error of the first job that cannot succeed, with all clients at fault."""
        number, result = next(iter(self._failed.items()))
        bad = {e.client: e for failed in reversed(self._failed.values()) for e in failed.bad}
        return BadUpdate(
            f"Round {self._attempt.manifest.round_id}: {self._step.name(number)}: {result.error}. "
            "Nothing was published.",
            result,
            [bad[client] for client in sorted(bad)],
        )


def dead_jobs(attempt: Attempt, step: Step) -> Set[int]:
    """The numbers of a step's jobs that are in the dead-letter queue."""
    letters = dead_letters(attempt.aws, attempt.lane, attempt.manifest.sha256)
    found = {step.number_of(job) for job in letters.values()}
    return frozenset(number for number in found if number is not None)


def gave_up(attempt: Attempt, step: Step, numbers: Sequence[int]) -> RoundFailed:
    """The error of a round with jobs that failed on every try: names the jobs, the tries and the last causes."""
    lane, round_id = attempt.lane, attempt.manifest.round_id
    silent = (
        "no result was sent (the function was killed, ran out of memory, or its result went to an earlier "
        f"coordinator); see the log group {log_group(lane)}"
    )
    causes: dict[int, str] = {}
    for result in attempt.failed_tries:
        number = step.number_of(result)
        if number is not None and result.error:
            causes[number] = result.error
    failed = [
        f"{step.name(number)} failed {lane.max_receive_count} times, last cause: {causes.get(number, silent)}"
        for number in numbers[:_NAMED]
    ]
    if len(numbers) > _NAMED:
        failed.append(f"and {len(numbers) - _NAMED} more {step.noun}")
    return RoundFailed(
        f"Round {round_id}: {'; '.join(failed)}. Nothing was published. The jobs are in the dead-letter queue "
        f"{lane.dead_letter_queue_url}; when the cause is gone, `orchestrator resume --round {round_id} "
        "--redrive` continues the round."
    )
