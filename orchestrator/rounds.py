"""A round from its opening to its report. Read this first: submit, pin, dispatch, (shard_average,) collect.

Nothing of a round is kept here: S3 holds its record, manifest, shards and report, so the same command continues a
round that another process began.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from lambdas.contract import RoundManifest, RoundRecord, check_name, global_key, report_key, round_key
from orchestrator import report as reports
from orchestrator.aws import Clients, create_object, error_code, exists, read_object
from orchestrator.collect import BadShard, Collection, await_shards
from orchestrator.deployment import Deployment, Lane
from orchestrator.dispatch import freeze_round, queue_jobs, read_manifest
from orchestrator.errors import RoundConflict, RoundFailed
from orchestrator.narration import Narration
from orchestrator.pin import pin_updates
from orchestrator.planner import choose_lane
from orchestrator.publish import publish
from orchestrator.quorum import RoundRequest, await_updates
from orchestrator.report import Report
from orchestrator.stored import stored_shards

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def start_round(
    clients: Clients, deployment: Deployment, request: RoundRequest, narration: Narration | None = None
) -> Report:
    """Open the round if need be, wait for quorum or deadline, average, publish, report; or continue where it stopped.

    Raises:
        RoundConflict: the round is already published, or belongs to another model.
        QuorumMissed: fewer updates than the quorum when the deadline passed.
        RoundFailed: a bad update, or a shard whose every try failed.
        NotDeployed: no lane for the shard count.
        BadInput, InvalidName: a request that makes no sense.
    """
    narration = narration or Narration()
    s3, bucket = clients.s3, deployment.bucket
    clock = _Clock()
    if request.shards is not None:
        deployment.lane(request.shards)
    _refuse_ended(s3, bucket, request.round_id)
    record = open_round(s3, bucket, request.round_id, request.model)
    manifest = read_manifest(s3, bucket, request.round_id)
    collection = Collection()
    attempt = 0
    if manifest is None:
        manifest = _close_round(clients, deployment, request, record, clock, narration)
    else:
        narration.say(f"Round {request.round_id} is already pinned; continuing with {manifest.shards} shards.")
        attempt = 1
        if not exists(s3, bucket, manifest.output.key):
            collection.stored = stored_shards(s3, bucket, manifest) or {}
    lane = deployment.lane(manifest.shards)
    if not (attempt and exists(s3, bucket, manifest.output.key)):
        missing = [shard for shard in range(manifest.shards) if shard not in collection.stored]
        queue_jobs(clients, lane.queue_url, manifest, missing, attempt=attempt)
        narration.say(f"Queued {len(missing)} shards of {_size(manifest)} for {lane.function_name}.")
        clock.mark("queueing")
        _await(clients, deployment, lane, manifest, collection, request.timeout_s, narration)
        clock.mark("averaging")
    done = publish(s3, bucket, manifest, collection.digests())
    clock.mark("publishing")
    report = reports.published(bucket, manifest, lane, collection, done, clock.seconds())
    s3.put_object(
        Bucket=bucket, Key=report_key(request.round_id), Body=report.to_bytes(), ContentType="application/json"
    )  # fmt: skip
    return report


def open_round(s3: S3Client, bucket: str, round_id: str, model: str) -> RoundRecord:
    """Write the round's record, or read the one that is there.

    Raises:
        RoundConflict: the round belongs to another model.
    """
    record = RoundRecord(check_name("round", round_id), check_name("model", model), time.time())
    if create_object(s3, bucket, round_key(round_id), record.to_bytes()):
        return record
    found = read_object(s3, bucket, round_key(round_id))
    existing = RoundRecord.from_bytes(found[0]) if found else record
    if existing.model != model:
        raise RoundConflict(
            f"Round {round_id} is one of model {existing.model}, not of {model}. Choose another round id."
        )
    return existing


def _refuse_ended(s3: S3Client, bucket: str, round_id: str) -> None:
    found = read_object(s3, bucket, report_key(round_id))
    if found is None:
        return
    report = Report.from_bytes(found[0]).document
    if report["status"] == "published":
        raise RoundConflict(
            f"Round {round_id} of model {report['model']} is already published. Fetch it with `orchestrator fetch "
            f"--model {report['model']} --round {round_id}`, or start a round with another id."
        )
    raise RoundFailed(f"{report['error']} The round has ended; start one with another id.")


def _close_round(
    clients: Clients,
    deployment: Deployment,
    request: RoundRequest,
    record: RoundRecord,
    clock: _Clock,
    narration: Narration,
) -> RoundManifest:
    s3, bucket = clients.s3, deployment.bucket
    if exists(s3, bucket, global_key(request.model, request.round_id)):
        raise RoundConflict(
            f"Model {request.model} has a global model of an earlier round {request.round_id}. Choose another round id."
        )
    updates = await_updates(s3, bucket, request, narration)
    clock.mark("waiting")
    with narration.bar("checking updates", len(updates)) as progress:
        pinned = pin_updates(s3, bucket, request.round_id, request.model, updates, progress)
    shards = request.shards
    if shards is None:
        shards = choose_lane(pinned.table.nbytes, len(updates), list(deployment.lanes.values())).shards
    manifest = freeze_round(s3, bucket, record, pinned, shards)
    narration.say(
        f"Pinned {len(manifest.participants)} updates with {manifest.total_examples:,} examples; "
        f"{manifest.shards} shards."
    )
    clock.mark("pinning")
    return manifest


def _await(
    clients: Clients,
    deployment: Deployment,
    lane: Lane,
    manifest: RoundManifest,
    collection: Collection,
    timeout_s: float | None,
    narration: Narration,
) -> None:
    # The queue shows a job again after 6 x the function's timeout (infra/lane), max_receive_count times.
    patience = timeout_s or 6.0 * lane.timeout_s * lane.max_receive_count + 60
    try:
        with narration.bar("averaging shards", manifest.shards) as progress:
            progress(len(collection.stored))
            await_shards(
                clients,
                deployment,
                lane,
                manifest,
                collection=collection,
                timeout_s=patience,
                progress=progress,
            )
    except BadShard as error:
        _abort_output(clients.s3, deployment.bucket, manifest)
        report = reports.failed(deployment.bucket, manifest, str(error), error.result)
        clients.s3.put_object(
            Bucket=deployment.bucket,
            Key=report_key(manifest.round_id),
            Body=report.to_bytes(),
            ContentType="application/json",
        )
        raise


def _abort_output(s3: S3Client, bucket: str, manifest: RoundManifest) -> None:
    if manifest.output.upload_id is None:
        return
    try:
        s3.abort_multipart_upload(Bucket=bucket, Key=manifest.output.key, UploadId=manifest.output.upload_id)
    except ClientError as error:
        if error_code(error) != "NoSuchUpload":
            raise


def _size(manifest: RoundManifest) -> str:
    return f"{manifest.table.nbytes / manifest.shards / 1e6:,.1f} MB"


class _Clock:
    """Seconds per step of a round."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._steps: dict[str, float] = {}

    def mark(self, step: str) -> None:
        now = time.monotonic()
        self._steps[step] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._steps, "total": time.monotonic() - self._began}
