"""GradsSharding: each job averages one shard of the model, independently of all other jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import Job, Result, ShardJob, ShardResult
from lambdas.storage.bucket import Bucket
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.s3 import exists
from orchestrator.errors import RoundFailed
from orchestrator.planning.planner import choose_lane
from orchestrator.rounds.context import Attempt, Averaged
from orchestrator.rounds.exclusion import describe
from orchestrator.rounds.norms import Norms, read_norms, too_large
from orchestrator.rounds.pin import Pinned
from orchestrator.rounds.publish import upload_gone
from orchestrator.rounds.queues import dead_letters, delete_dead_letters, queue_jobs
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.stored import stored_shards
from orchestrator.rounds.wait import BadUpdate, Collection, gave_up, wait_for_step

# In a round that excludes bad updates: after the first one, wait this long for those that other shards find, seconds.
VERDICTS_S = 5.0


class ShardedAveraging:
    """Averages a round by shards. The methods are described in averaging.py."""

    def check_lane(self, request: RoundRequest, deployment: Deployment) -> None:
        if request.shards is not None:
            deployment.lane_for(request.topology, request.shards)

    def choose_shards(self, request: RoundRequest, pinned: Pinned, deployment: Deployment) -> int:
        if request.shards is not None:
            return request.shards
        return choose_lane(pinned.table.nbytes, len(pinned.participants), list(deployment.lanes.values())).shards

    def describe(self, manifest: RoundManifest) -> str:
        return f"{manifest.shards} shards"

    def average(self, attempt: Attempt) -> Averaged:
        context, manifest, lane = attempt.context, attempt.manifest, attempt.lane
        collection, step = Collection(), ShardStep(attempt.bucket, manifest)
        missing = _find_missing(attempt, step, collection) if attempt.resumed else list(range(manifest.shards))
        queue_jobs(attempt.aws, lane.queue_url, manifest, missing, attempt=int(attempt.resumed))
        megabytes = manifest.table.nbytes / manifest.shards / 1e6
        context.narration.say(f"Queued {len(missing)} shards of {megabytes:,.1f} MB for {lane.function_name}.")
        context.clock.mark("queueing")
        verdicts_s = VERDICTS_S if context.request.on_invalid == "exclude" else 0.0
        with context.narration.bar("averaging shards", manifest.shards) as progress:
            progress(len(collection.stored))
            wait_for_step(attempt, step, collection, progress, verdicts_s=verdicts_s)
        results = collection.results
        return Averaged(
            results=[results[shard] for shard in sorted(results)],
            digests={shard: result.sha256 for shard, result in results.items() if result.sha256 is not None},
            norms=_norms(attempt, results),
        )

    def clean_up(self, bucket: Bucket, round_id: str) -> None:
        pass  # publish() deletes the shard objects.

    def progress(self, bucket: Bucket, manifest: RoundManifest, *, published: bool) -> dict[str, Any]:
        return {}

    def gave_up(self, dead: Iterable[Job], stored: Set[int]) -> list[Any]:
        return sorted({job.shard for job in dead if isinstance(job, ShardJob)} - stored)


@dataclass(frozen=True)
class ShardStep:
    """All shards of a round, as `wait_for_step` waits for them."""

    bucket: Bucket
    manifest: RoundManifest
    noun: str = "shards"

    @property
    def wanted(self) -> Set[int]:
        return frozenset(range(self.manifest.shards))

    def name(self, number: int) -> str:
        return f"shard {number} of {self.manifest.shards}"

    def number_of(self, message: Job | Result) -> int | None:
        if not isinstance(message, ShardJob | ShardResult) or message.shard >= self.manifest.shards:
            return None
        return message.shard

    def stored(self) -> Set[int] | None:
        found = stored_shards(self.bucket, self.manifest)
        return None if found is None else set(found)


def _find_missing(attempt: Attempt, step: ShardStep, collection: Collection) -> list[int]:
    """The shards to queue again after an earlier coordinator has stopped; notes those that are stored.

    Raises:
        RoundFailed: the multipart upload was aborted; or every try of a job failed, and `redrive` is not set.
    """
    manifest = attempt.manifest
    stored = stored_shards(attempt.bucket, manifest)
    if stored is None:
        if not exists(attempt.bucket, manifest.output.key):
            raise upload_gone(manifest)
        return []  # Another coordinator has published the round in the meantime.
    collection.stored = set(stored)
    missing = [shard for shard in range(manifest.shards) if shard not in stored]
    redrive = attempt.context.redrive
    letters = dead_letters(attempt.aws, attempt.lane, manifest.sha256, keep=redrive)
    dead = sorted({number for job in letters.values() if (number := step.number_of(job)) in missing})
    if dead and not redrive:
        raise gave_up(attempt, step, dead)
    # The letters are deleted before the jobs are queued. If this process ends in between, the shards are missing, and
    # the next coordinator queues them.
    delete_dead_letters(attempt.aws, attempt.lane, letters)
    return missing


def _norms(attempt: Attempt, results: Mapping[int, Result]) -> Norms | None:
    """The clients' norms; None where they are not known and the round does not depend on them.

    Raises:
        BadUpdate: some norms are above the round's largest.
        RoundFailed: the norms are not known, and the round has a largest norm.
    """
    manifest, max_norm = attempt.manifest, attempt.context.request.max_norm
    norms = read_norms(attempt.bucket, manifest, results)
    if max_norm is None:
        return norms
    if norms is None:
        raise RoundFailed(
            f"Round {manifest.round_id}: the sums of squares of some shards are missing, so that the norms are not "
            "known. Somebody has deleted them; start another round."
        )
    bad = too_large(norms, max_norm)
    if bad:
        raise BadUpdate(f"Round {manifest.round_id}: {describe(bad)}. Nothing was published.", None, bad)
    return norms
