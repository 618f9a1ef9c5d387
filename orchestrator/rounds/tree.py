"""A round that is averaged by a tree: its levels, one after the other, over SQS.

S3 holds the progress, as it does for shards: the partial sums that are stored there need not be made again, whoever
continues the round. What a worker kept in its machine's shared memory is known from its result only; where it cannot be
reached, it is made again and stored in S3.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambdas.protocol.keys import partials_prefix
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import AggregatorJob, AggregatorResult, Partial, Result, ShardJob
from lambdas.protocol.tensor_table import TensorTable
from lambdas.protocol.tree import Tree, tree_of
from lambdas.storage.bucket import Bucket
from lambdas.storage.partials import Place
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.aws.s3 import delete_objects, exists, list_objects
from orchestrator.errors import BadInput, RoundFailed
from orchestrator.planning.sizing import worker_peak_mb
from orchestrator.progress import Narration
from orchestrator.rounds.queues import dead_letters, delete_dead_letters, send_jobs
from orchestrator.rounds.stored import stored_shards
from orchestrator.rounds.wait import Collection, await_step, dead_jobs, gave_up

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

# An aggregator: its level and its index there.
Node = tuple[int, int]
# How often the partial sums of one aggregator are made again before the round gives up.
_MAKE_AGAIN = 5


@dataclass
class TreeRun:
    """What is known of a tree's aggregators.

    Attributes:
        partials: where the sums are that exist.
        results: the newest result of each aggregator that reported one.
        retries: tries that failed.
        level_s: seconds per level, from queueing its jobs to its last result.
        made_again: aggregators whose sums could not be reached where they were needed.
    """

    partials: dict[Node, Partial] = field(default_factory=dict)
    results: dict[Node, AggregatorResult] = field(default_factory=dict)
    retries: list[Result] = field(default_factory=list)
    level_s: dict[int, float] = field(default_factory=dict)
    made_again: set[Node] = field(default_factory=set)

    def collection(self) -> Collection:
        """The results in the order of the levels, as a report takes them."""
        return Collection(
            results=dict(enumerate(self.results[node] for node in sorted(self.results))),
            retries=self.retries,
        )

    def digests(self, tree: Tree) -> dict[int, str]:
        """SHA-256 of the averaged model, shard 0 of 1, where the root reported it."""
        root = self.results.get((tree.root, 0))
        return {0: root.sha256} if root is not None and root.sha256 is not None else {}

    def levels(self, tree: Tree) -> list[dict[str, Any]]:
        """Per level: aggregators, seconds, function seconds, requests, and which way the partial sums took."""
        rows = []
        for level, width in enumerate(tree.widths):
            mine = [result for (n, _), result in self.results.items() if n == level]
            rows.append(
                {
                    "level": level,
                    "aggregators": width,
                    "reported": len(mine),
                    "seconds": round(self.level_s.get(level, 0.0), 3),
                    "function_s": round(sum(r.stats.wall_s for r in mine), 3),
                    "gets": sum(r.stats.gets for r in mine),
                    "puts": sum(r.stats.puts for r in mine),
                    "in_shared_memory": sum(r.segment is not None for r in mine),
                    "in_s3": sum(r.segment is None for r in mine),
                    "made_again": sum(n == level for n, _ in self.made_again),
                }
            )
        return rows


def average_by_tree(
    aws: AwsClients,
    deployment: Deployment,
    lane: Lane,
    manifest: RoundManifest,
    run: TreeRun,
    *,
    resumed: bool,
    redrive: bool,
    timeout_s: float,
    narration: Narration,
    still_mine: Callable[[], object] = lambda: None,
) -> None:
    """Queue level after level and wait for each, until the root has stored the global model.

    Args:
        run: is filled in.
        resumed: the round was begun by another process: look for what is there.
        redrive: queue again the jobs whose every try failed; otherwise they stop the round again.
        timeout_s: how long to wait without any aggregator being finished.
        still_mine: called now and then; raises where another orchestrator coordinates the round by now.

    Raises:
        BadShard, RoundFailed: as `collect.await_step`.
    """
    bucket = aws.bucket(deployment.bucket)
    tree, digest = tree_of(manifest), manifest.sha256
    if resumed:
        run.partials = stored_partials(bucket, manifest, digest)
        if stored_shards(bucket, manifest) is None:
            return  # published or aborted: publish() finds out
        if redrive:
            delete_dead_letters(aws, lane, dead_letters(aws, lane, digest, keep=True))
    attempts: dict[Node, int] = {}
    with narration.bar(f"{manifest.topology} aggregators", sum(tree.widths)) as progress:
        progress(len(run.partials))
        while (tree.root, 0) not in run.partials:
            level, wanted = next_step(tree, run.partials)
            step = _Level(bucket, manifest, digest, level, frozenset(wanted))
            if resumed and (dead := sorted(dead_jobs(aws, lane, step, digest))):
                raise gave_up(manifest, lane, step, dead, Collection(retries=run.retries))
            jobs = []
            for index in wanted:
                attempt = attempts.setdefault((level, index), 1 if resumed else 0)
                below = [(level - 1, i) for i in tree.inputs(level, index)] if level else []
                again = (level, index) in run.made_again
                inputs = tuple(run.partials[node] for node in below)
                jobs.append(AggregatorJob(manifest.round_id, digest, level, index, inputs, attempt, again))
                attempts[level, index] = attempt + 1
                if attempt > _MAKE_AGAIN:
                    raise RoundFailed(
                        f"Round {manifest.round_id}: {step.name(index)} was queued {attempt} times, and the sums "
                        "below it cannot be reached. Is somebody deleting under "
                        f"s3://{bucket.name}/{partials_prefix(manifest.round_id)}? The same start-round continues."
                    )
            began = time.monotonic()
            send_jobs(aws, lane.queue_url, jobs)
            narration.say(
                f"Level {level}: queued {len(jobs)} of {tree.widths[level]} aggregators for {lane.function_name}."
            )
            collection = Collection()
            await_step(
                aws, deployment, lane, manifest, step,
                collection=collection, timeout_s=timeout_s, progress=progress, still_mine=still_mine,
            )  # fmt: skip
            run.level_s[level] = run.level_s.get(level, 0.0) + time.monotonic() - began
            run.retries += collection.retries
            if not _take_in(run, step, collection, narration):
                return


def check_fits(table: TensorTable, clients: int, topology: str, lane: Lane) -> None:
    """Refuse a model that the lane's aggregators cannot hold.

    Raises:
        BadInput: says what is needed and what to do.
    """
    needed = worker_peak_mb(clients, 8 * table.elements)
    if needed > lane.memory_mb:
        raise BadInput(
            f"An aggregator of {topology} holds the complete model as float64 sums, {8 * table.elements:,} bytes, "
            f"and needs about {needed:,} MB; {lane.function_name} has {lane.memory_mb:,} MB. Set the environment's "
            "model_bytes to this model's size and deploy again, or use --topology grads-sharding."
        )


def next_step(tree: Tree, partials: Set[Node] | dict[Node, Partial]) -> tuple[int, list[int]]:
    """The lowest level with aggregators that are still needed and not there, and which: their inputs are all there.

    Needed is the root, and what goes into an aggregator that is needed and not there.
    """
    missing: dict[int, list[int]] = {tree.root: [0]}
    for level in range(tree.root, 0, -1):
        below = [i for index in missing[level] for i in tree.inputs(level, index) if (level - 1, i) not in partials]
        if not below:
            return level, missing[level]
        missing[level - 1] = below
    return 0, missing[0]


def _take_in(run: TreeRun, step: _Level, collection: Collection, narration: Narration) -> bool:
    """Note what a step brought; False where the round has ended meanwhile."""
    late = step.wanted - set(collection.results)
    stored = step.stored_partials() if late else {}
    if late and stored_shards(step.bucket, step.manifest) is None:
        return False
    for other in collection.others:
        if other.status == "done" and isinstance(other, AggregatorResult):
            run.results.setdefault((other.level, other.aggregator), other)
    for index in step.wanted:
        node, result = (step.level, index), collection.results.get(index)
        if not isinstance(result, AggregatorResult):
            if index in stored:
                run.partials[node] = stored[index]
        elif result.status == "missing":
            lost = {(step.level - 1, i) for i in result.missing}
            narration.say(f"Level {step.level}, aggregator {index}: {result.error}; made again, in S3.")
            run.made_again |= lost
            for gone in lost:
                run.partials.pop(gone, None)
        else:
            run.results[node] = result
            run.partials[node] = Partial(segment=result.segment) if result.segment else Partial(etag=result.etag)
    return True


@dataclass(frozen=True)
class _Level:
    """Some aggregators of one level, as `collect.await_step` awaits them."""

    bucket: Bucket
    manifest: RoundManifest
    digest: str
    level: int
    wanted: Set[int]
    noun: str = "aggregators"

    def name(self, number: int) -> str:
        return f"aggregator {number} on level {self.level} of {self.manifest.topology}"

    def number_of(self, message: ShardJob | AggregatorJob | Result) -> int | None:
        if not isinstance(message, AggregatorJob | AggregatorResult) or message.level != self.level:
            return None
        return message.aggregator

    def stored(self) -> Set[int] | None:
        found = set(self.stored_partials())
        if not self.wanted <= found and exists(self.bucket, self.manifest.output.key):
            return None
        return found

    def stored_partials(self) -> dict[int, Partial]:
        """Where S3 holds this level's sums; the root's is the averaged model."""
        everything = stored_partials(self.bucket, self.manifest, self.digest)
        return {index: partial for (level, index), partial in everything.items() if level == self.level}


def stored_partials(bucket: Bucket, manifest: RoundManifest, digest: str) -> dict[Node, Partial]:
    """The sums that S3 holds complete, the root's (the averaged model) among them."""
    tree = tree_of(manifest)
    objects = {item["Key"]: item for item in list_objects(bucket, partials_prefix(manifest.round_id))}
    found: dict[Node, Partial] = {}
    for level, width in enumerate(tree.widths[:-1]):
        for index in range(width):
            place = Place(manifest, digest, level, index)
            item = objects.get(place.key)
            if item is not None and item["Size"] == place.nbytes:
                found[level, index] = Partial(etag=item["ETag"])
    root = (stored_shards(bucket, manifest) or {}).get(0)
    if root is not None:
        found[tree.root, 0] = Partial(etag=root.etag)
    return found


def dead_aggregators(aws: AwsClients, lane: Lane, manifest: RoundManifest) -> list[Node]:
    """The aggregators of a round whose jobs are among the dead letters."""
    letters = dead_letters(aws, lane, manifest.sha256).values()
    return sorted({(job.level, job.aggregator) for job in letters if isinstance(job, AggregatorJob)})


def delete_partials(bucket: Bucket, round_id: str) -> None:
    """Delete a round's partial sums: it is published, or over."""
    delete_objects(bucket, [item["Key"] for item in list_objects(bucket, partials_prefix(round_id))])
