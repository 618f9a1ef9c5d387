"""Driving a round: from its open record, or wherever an earlier coordinator stopped, to its report."""

from __future__ import annotations

import time

from lambdas.protocol.keys import global_key, report_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.protocol.tree import tree_of
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.aws.s3 import create_object, exists, read_object
from orchestrator.errors import OrchestratorError, QuorumMissed, RoundConflict, RoundFailed
from orchestrator.planning.planner import choose_lane
from orchestrator.progress import Narration
from orchestrator.rounds import report as reports
from orchestrator.rounds.abort import clean_up
from orchestrator.rounds.exclusion import describe, exclude
from orchestrator.rounds.intake import gather
from orchestrator.rounds.late import late_updates
from orchestrator.rounds.lease import Lease
from orchestrator.rounds.manifest import freeze_round, read_manifest
from orchestrator.rounds.norms import Norms, read_norms, too_large
from orchestrator.rounds.publish import publish, upload_gone
from orchestrator.rounds.queues import dead_letters, delete_dead_letters, queue_jobs
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import RoundRecord, RoundRequest
from orchestrator.rounds.stored import stored_shards
from orchestrator.rounds.tree import TreeRun, average_by_tree, check_fits, delete_partials
from orchestrator.rounds.wait import BadShard, Collection, ShardStep, await_shards, gave_up

# After the first bad update, how long to wait for what other shards find wrong with others, seconds.
VERDICTS_S = 5.0


def drive(
    aws: AwsClients,
    deployment: Deployment,
    record: RoundRecord,
    lease: Lease,
    narration: Narration,
    *,
    redrive: bool = False,
) -> Report:
    """Do what is left to do of a round, and report.

    Args:
        redrive: queue again the jobs whose every try failed; otherwise they stop the round again.

    Raises:
        LeaseLost: another process coordinates the round now.
        And what `rounds.start_round` raises.
    """
    bucket, request = aws.bucket(deployment.bucket), record.request
    clock = _Clock()
    collection = Collection()
    manifest = read_manifest(bucket, request.round_id)
    again = manifest is not None
    if manifest is None:
        manifest = _close_round(aws, deployment, record, lease, clock, narration)
    else:
        narration.say(f"Round {request.round_id} is already pinned; continuing with {_work(manifest)}.")
    lane = deployment.lane_for(manifest.topology, manifest.shards)
    tree: TreeRun | None = None
    norms: Norms | None = None
    while not (again and exists(bucket, manifest.output.key)):
        lease.check()
        try:
            if manifest.topology != GRADS_SHARDING:
                tree = TreeRun()
                clock.mark("queueing")
                average_by_tree(
                    aws, deployment, lane, manifest, tree, resumed=again, redrive=redrive,
                    timeout_s=_patience(lane, request), narration=narration, still_mine=lease.check,
                )  # fmt: skip
                collection = tree.collection()
            else:
                missing = (
                    _continue(aws, bucket, lane, manifest, collection, redrive) if again else range(manifest.shards)
                )
                queue_jobs(aws, lane.queue_url, manifest, missing, attempt=int(again))
                narration.say(f"Queued {len(missing)} shards of {_size(manifest)} for {lane.function_name}.")
                clock.mark("queueing")
                _await(aws, deployment, lane, manifest, collection, request, lease, narration)
                norms = _norms(aws, bucket, request, manifest, collection)
            break
        except BadShard as error:
            manifest = _exclude_or_end(aws, bucket, request, manifest, error, lease, narration)
            # A revision of its own: all of it again, for the first time.
            again, collection = False, Collection(retries=collection.retries)
        finally:
            clock.mark("averaging")
    lease.begin_publishing()
    done = publish(bucket, manifest, tree.digests(tree_of(manifest)) if tree else collection.digests())
    if manifest.topology != GRADS_SHARDING:
        delete_partials(bucket, manifest.round_id)
    if lease.record.earlier or manifest.revision:
        # Somebody may have died between creating an upload and writing it down, or averages by an older revision.
        clean_up(bucket, manifest.round_id, manifest.model)
    clock.mark("publishing")
    report = reports.published(
        bucket.name, manifest, lane, collection, done, clock.seconds(), lease.coordinators,
        tree.levels(tree_of(manifest)) if tree else None,
        request=request, norms=norms, late=late_updates(bucket, manifest),
    )  # fmt: skip
    return _write(aws, bucket, report)


def _write(aws: AwsClients, bucket: Bucket, report: Report) -> Report:
    """Write the report, if nobody was faster; the round's one report."""
    key = report_key(report.document["round"])
    if create_object(bucket, key, report.to_bytes()):
        return report
    found = read_object(bucket, key)
    return Report.from_bytes(found[0]) if found else report


def _continue(
    aws: AwsClients, bucket: Bucket, lane: Lane, manifest: RoundManifest, collection: Collection, redrive: bool
) -> list[int]:
    """What an earlier coordinator left: fills `collection` with the shards that are stored; returns those to queue again."""
    stored = stored_shards(bucket, manifest)
    if stored is None:
        if not exists(bucket, manifest.output.key):
            raise upload_gone(manifest)
        return []  # published meanwhile
    collection.stored = stored
    missing = [shard for shard in range(manifest.shards) if shard not in stored]
    step = ShardStep(bucket, manifest)
    letters = dead_letters(aws, lane, manifest.sha256, keep=redrive)
    dead = sorted({number for job in letters.values() if (number := step.number_of(job)) in missing})
    if dead and not redrive:
        raise gave_up(manifest, lane, step, dead, collection)
    # First deleted, then queued: whoever dies in between leaves a shard that is missing, and is queued by the next.
    delete_dead_letters(aws, lane, letters)
    return missing


def _close_round(
    aws: AwsClients,
    deployment: Deployment,
    record: RoundRecord,
    lease: Lease,
    clock: _Clock,
    narration: Narration,
) -> RoundManifest:
    bucket, request = aws.bucket(deployment.bucket), record.request
    if exists(bucket, global_key(request.model, request.round_id)):
        raise RoundConflict(
            f"Model {request.model} has a global model of an earlier round {request.round_id}. Choose another round id."
        )
    pinned = gather(bucket, record, narration, lease.check, lambda: clock.mark("waiting"))
    shards = request.shards
    if request.topology != GRADS_SHARDING:
        shards = 1
        lane = deployment.lane_for(request.topology, 1)
        check_fits(pinned.table, len(pinned.participants), request.topology, lane)
    elif shards is None:
        shards = choose_lane(pinned.table.nbytes, len(pinned.participants), list(deployment.lanes.values())).shards
    manifest = freeze_round(bucket, record, pinned, shards, request.topology)
    narration.say(
        f"Pinned {len(manifest.participants)} updates with {manifest.total_examples:,} examples; {_work(manifest)}."
    )
    clock.mark("pinning")
    return manifest


def _await(
    aws: AwsClients,
    deployment: Deployment,
    lane: Lane,
    manifest: RoundManifest,
    collection: Collection,
    request: RoundRequest,
    lease: Lease,
    narration: Narration,
) -> None:
    with narration.bar("averaging shards", manifest.shards) as progress:
        progress(len(collection.stored))
        await_shards(
            aws,
            deployment,
            lane,
            manifest,
            collection=collection,
            timeout_s=_patience(lane, request),
            progress=progress,
            still_mine=lease.check,
            verdicts_s=VERDICTS_S if request.on_invalid == "exclude" else 0.0,
        )


def _patience(lane: Lane, request: RoundRequest) -> float:
    # The queue shows a job again after 6 x the function's timeout (infra/lane), max_receive_count times.
    return request.timeout_s or 6.0 * lane.timeout_s * lane.max_receive_count + 60


def _norms(
    aws: AwsClients, bucket: Bucket, request: RoundRequest, manifest: RoundManifest, collection: Collection
) -> Norms | None:
    """The clients' norms; None where they are not known and the round does not depend on them.

    Raises:
        BadShard: some are above the round's largest.
    """
    norms = read_norms(bucket, manifest, collection.results)
    if request.max_norm is None:
        return norms
    if norms is None:
        raise RoundFailed(
            f"Round {manifest.round_id}: the sums of squares of some shards are missing, so that the norms are not "
            "known. Somebody has deleted them; start another round."
        )
    bad = too_large(norms, request.max_norm)
    if bad:
        raise BadShard(f"Round {manifest.round_id}: {describe(bad)}. Nothing was published.", None, bad)
    return norms


def _exclude_or_end(
    aws: AwsClients,
    bucket: Bucket,
    request: RoundRequest,
    manifest: RoundManifest,
    error: BadShard,
    lease: Lease,
    narration: Narration,
) -> RoundManifest:
    """Plan the round anew without the clients at fault; or, where that is not asked for or not possible, end it."""
    ended: OrchestratorError = error
    if request.on_invalid == "exclude" and error.bad:
        lease.check()
        try:
            planned = exclude(bucket, request, manifest, error.bad)
            narration.say(f"Excluded: {describe(error.bad)}. Averaging again, without them.")
            return planned
        except (QuorumMissed, RoundFailed) as failure:
            ended = failure
    _write(aws, bucket, reports.failed(bucket.name, manifest, ended, error, lease.coordinators, request))
    clean_up(bucket, manifest.round_id, manifest.model)
    lease.end("failed")
    raise ended


def _work(manifest: RoundManifest) -> str:
    if manifest.topology == GRADS_SHARDING:
        return f"{manifest.shards} shards"
    return f"{' + '.join(map(str, tree_of(manifest).widths))} aggregators of {manifest.topology}"


def _size(manifest: RoundManifest) -> str:
    return f"{manifest.table.nbytes / manifest.shards / 1e6:,.1f} MB"


class _Clock:
    """Seconds per step of a round."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._steps: dict[str, float] = {}

    def mark(self, step: str) -> None:
        now = time.monotonic()
        self._steps[step] = self._steps.get(step, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._steps, "total": time.monotonic() - self._began}
