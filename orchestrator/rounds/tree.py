"""lambda-FL and LIFL: the aggregators of a tree, one level after the other.

S3 holds the progress: a partial sum that is stored there is not computed again, whichever process continues the round.
A partial sum in a worker's shared memory is known from the worker's result only. Where it cannot be read, it is
recomputed and stored in S3.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

from lambdas.protocol.keys import partials_prefix
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import AggregatorJob, AggregatorResult, Job, Partial, Result
from lambdas.protocol.tree import Tree, tree_of
from lambdas.storage.bucket import Bucket
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.s3 import delete_objects, exists, list_objects
from orchestrator.errors import BadInput, RoundFailed
from orchestrator.planning.sizing import worker_peak_mb
from orchestrator.rounds.context import Attempt, Averaged
from orchestrator.rounds.pin import Pinned
from orchestrator.rounds.queues import dead_letters, delete_dead_letters, send_jobs
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.stored import stored_shards
from orchestrator.rounds.wait import Collection, dead_jobs, gave_up, wait_for_step

# An aggregator: its level and its index there.
Node = tuple[int, int]
# A round fails when it queues an aggregator more often than this because partial sums cannot be read.
_MAX_RECOMPUTED = 5


class TreeAveraging:
    """Averages a round by a tree. The methods are described in averaging.py."""

    def check_lane(self, request: RoundRequest, deployment: Deployment) -> None:
        deployment.lane_for(request.topology, 1)

    def choose_shards(self, request: RoundRequest, pinned: Pinned, deployment: Deployment) -> int:
        lane = deployment.lane_for(request.topology, 1)
        sum_bytes = 8 * pinned.table.elements
        needed = worker_peak_mb(len(pinned.participants), sum_bytes)
        if needed > lane.memory_mb:
            raise BadInput(
                f"An aggregator of {request.topology} holds the complete model as float64 sums, {sum_bytes:,} bytes, "
                f"and needs about {needed:,} MB; {lane.function_name} has {lane.memory_mb:,} MB. Set the environment's "
                "model_bytes to this model's size and deploy again, or use --topology grads-sharding."
            )
        return 1

    def describe(self, manifest: RoundManifest) -> str:
        return f"{' + '.join(map(str, tree_of(manifest).widths))} aggregators of {manifest.topology}"

    def average(self, attempt: Attempt) -> Averaged:
        run = TreeRun()
        attempt.context.clock.mark("queueing")
        if attempt.resumed:
            run.partials = stored_partials(attempt.bucket, attempt.manifest)
            if stored_shards(attempt.bucket, attempt.manifest) is None:
                return run.outcome(tree_of(attempt.manifest))  # Published or aborted. publish() determines which.
            if attempt.context.redrive:
                letters = dead_letters(attempt.aws, attempt.lane, attempt.manifest.sha256, keep=True)
                delete_dead_letters(attempt.aws, attempt.lane, letters)
        _climb(attempt, run)
        return run.outcome(tree_of(attempt.manifest))

    def clean_up(self, bucket: Bucket, round_id: str) -> None:
        delete_objects(bucket, [item["Key"] for item in list_objects(bucket, partials_prefix(round_id))])

    def progress(self, bucket: Bucket, manifest: RoundManifest, *, published: bool) -> dict[str, Any]:
        sums = {} if published else {"partial_sums": len(stored_partials(bucket, manifest))}
        return {"topology": manifest.topology, **sums}

    def gave_up(self, dead: Iterable[Job], stored: Set[int]) -> list[Any]:
        return sorted({(job.level, job.aggregator) for job in dead if isinstance(job, AggregatorJob)})


@dataclass
class TreeRun:
    """What a coordinator knows about a tree's aggregators.

    Attributes:
        partials: where the sums are that exist.
        results: the newest result of each aggregator that reported one.
        queued: how often each aggregator was queued.
        level_s: seconds by level, from queueing its jobs to its last result.
        recomputed: aggregators whose sums another aggregator could not read.
    """

    partials: dict[Node, Partial] = field(default_factory=dict)
    results: dict[Node, AggregatorResult] = field(default_factory=dict)
    queued: dict[Node, int] = field(default_factory=dict)
    level_s: dict[int, float] = field(default_factory=dict)
    recomputed: set[Node] = field(default_factory=set)

    def outcome(self, tree: Tree) -> Averaged:
        """The results in the order of the levels. The root's output is shard 0 of 1."""
        root = self.results.get((tree.root, 0))
        return Averaged(
            results=[self.results[node] for node in sorted(self.results)],
            digests={0: root.sha256} if root is not None and root.sha256 is not None else {},
            levels=[self._level(level, width) for level, width in enumerate(tree.widths)],
        )

    def _level(self, level: int, width: int) -> dict[str, Any]:
        """The report's row for a level. `function_s` is the sum over its aggregators."""
        results = [result for (n, _), result in self.results.items() if n == level]
        return {
            "level": level,
            "aggregators": width,
            "reported": len(results),
            "seconds": round(self.level_s.get(level, 0.0), 3),
            "function_s": round(sum(r.stats.wall_s for r in results), 3),
            "gets": sum(r.stats.gets for r in results),
            "puts": sum(r.stats.puts for r in results),
            "in_shared_memory": sum(r.segment is not None for r in results),
            "in_s3": sum(r.segment is None for r in results),
            "made_again": sum(n == level for n, _ in self.recomputed),
        }


@dataclass(frozen=True)
class TreeLevel:
    """Some aggregators of one level, as `wait_for_step` waits for them."""

    bucket: Bucket
    manifest: RoundManifest
    level: int
    wanted: Set[int]
    noun: str = "aggregators"

    def name(self, number: int) -> str:
        return f"aggregator {number} on level {self.level} of {self.manifest.topology}"

    def number_of(self, message: Job | Result) -> int | None:
        if not isinstance(message, AggregatorJob | AggregatorResult) or message.level != self.level:
            return None
        return message.aggregator if message.aggregator in self.wanted else None

    def stored(self) -> Set[int] | None:
        found = set(self.stored_partials())
        if not self.wanted <= found and exists(self.bucket, self.manifest.output.key):
            return None
        return found

    def stored_partials(self) -> dict[int, Partial]:
        """The level's sums that are in S3, by aggregator. The root's sum is the averaged model."""
        everything = stored_partials(self.bucket, self.manifest)
        return {index: partial for (level, index), partial in everything.items() if level == self.level}


def next_step(tree: Tree, partials: Set[Node] | dict[Node, Partial]) -> tuple[int, list[int]]:
    """The lowest level with aggregators that are needed and missing, and these aggregators.

    The root is needed, and the inputs of every aggregator that is needed and missing. The inputs of the returned
    aggregators all exist.
    """
    missing: dict[int, list[int]] = {tree.root: [0]}
    for level in range(tree.root, 0, -1):
        below = [i for index in missing[level] for i in tree.inputs(level, index) if (level - 1, i) not in partials]
        if not below:
            return level, missing[level]
        missing[level - 1] = below
    return 0, missing[0]


def stored_partials(bucket: Bucket, manifest: RoundManifest) -> dict[Node, Partial]:
    """The sums that S3 holds completely, including the root's, which is the averaged model."""
    from lambdas.storage.partials import Place  # here, because it loads numpy

    tree = tree_of(manifest)
    objects = {item["Key"]: item for item in list_objects(bucket, partials_prefix(manifest.round_id))}
    found: dict[Node, Partial] = {}
    for level, width in enumerate(tree.widths[:-1]):
        for index in range(width):
            place = Place(manifest, manifest.sha256, level, index)
            item = objects.get(place.key)
            if item is not None and item["Size"] == place.nbytes:
                found[level, index] = Partial(etag=item["ETag"])
    root = (stored_shards(bucket, manifest) or {}).get(0)
    if root is not None:
        found[tree.root, 0] = Partial(etag=root.etag)
    return found


def _climb(attempt: Attempt, run: TreeRun) -> None:
    """Queue level after level and wait for each, until the root has stored the averaged model.

    Raises:
        BadUpdate, RoundFailed: as `wait_for_step`.
    """
    manifest, tree = attempt.manifest, tree_of(attempt.manifest)
    with attempt.context.narration.bar(f"{manifest.topology} aggregators", sum(tree.widths)) as progress:
        progress(len(run.partials))
        while (tree.root, 0) not in run.partials:
            level, wanted = next_step(tree, run.partials)
            step = TreeLevel(attempt.bucket, manifest, level, frozenset(wanted))
            if attempt.resumed and (dead := sorted(dead_jobs(attempt, step))):
                raise gave_up(attempt, step, dead)
            began = time.monotonic()
            send_jobs(attempt.aws, attempt.lane.queue_url, [_job(attempt, run, step, index) for index in wanted])
            attempt.context.narration.say(
                f"Level {level}: queued {len(wanted)} of {tree.widths[level]} aggregators for "
                f"{attempt.lane.function_name}."
            )
            collection = Collection()
            wait_for_step(attempt, step, collection, progress)
            run.level_s[level] = run.level_s.get(level, 0.0) + time.monotonic() - began
            if not _take_in(attempt, run, step, collection):
                return


def _job(attempt: Attempt, run: TreeRun, step: TreeLevel, index: int) -> AggregatorJob:
    """The next job of an aggregator.

    Raises:
        RoundFailed: it was queued too often.
    """
    manifest, node = attempt.manifest, (step.level, index)
    # Of a resumed round, an earlier coordinator may have queued the job.
    tries = run.queued.setdefault(node, 1 if attempt.resumed else 0)
    run.queued[node] = tries + 1
    if tries > _MAX_RECOMPUTED:
        raise RoundFailed(
            f"Round {manifest.round_id}: {step.name(index)} was queued {tries} times, and its inputs cannot be read. "
            f"Check whether somebody deletes objects under s3://{attempt.bucket.name}/"
            f"{partials_prefix(manifest.round_id)}; `orchestrator resume --round {manifest.round_id}` continues the "
            "round."
        )
    below = tree_of(manifest).inputs(step.level, index) if step.level else ()
    inputs = tuple(run.partials[step.level - 1, i] for i in below)
    in_s3 = node in run.recomputed
    return AggregatorJob(manifest.round_id, manifest.sha256, step.level, index, inputs, tries, in_s3)


def _take_in(attempt: Attempt, run: TreeRun, step: TreeLevel, collection: Collection) -> bool:
    """Note the outcome of a step; False where the round has ended in the meantime."""
    without_result = step.wanted - set(collection.results)
    stored = step.stored_partials() if without_result else {}
    if without_result and stored_shards(step.bucket, step.manifest) is None:
        return False
    for other in collection.others:  # results of other levels, which arrive late; the report shows them
        if isinstance(other, AggregatorResult) and other.status == "done":
            run.results.setdefault((other.level, other.aggregator), other)
        elif isinstance(other, AggregatorResult) and other.status == "retrying":
            attempt.failed_tries.append(other)
    for index in without_result & set(stored):
        run.partials[step.level, index] = stored[index]
    for index, result in collection.results.items():
        node = (step.level, index)
        assert isinstance(result, AggregatorResult)
        if result.status == "missing":
            attempt.context.narration.say(
                f"Level {step.level}, aggregator {index}: {result.error}; they are recomputed and stored in S3."
            )
            for lost in {(step.level - 1, i) for i in result.missing}:  # The next step queues these inputs again.
                run.recomputed.add(lost)
                run.partials.pop(lost, None)
        else:
            run.results[node] = result
            run.partials[node] = Partial(segment=result.segment) if result.segment else Partial(etag=result.etag)
    return True
