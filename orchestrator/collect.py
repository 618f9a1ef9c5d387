"""From queued jobs to the published model: results as they come, S3 as the truth, one atomic publication."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from lambdas.contract import (
    LatestModel,
    RoundManifest,
    ShardJob,
    ShardResult,
    latest_key,
    report_key,
    sha256_hex,
    shard_key,
    shards_prefix,
)
from lambdas.errors import InvalidContract
from lambdas.sinks import head_of_shard
from lambdas.tensors import global_header
from orchestrator.aws import (
    Clients,
    completed_part,
    create_large_object,
    error_code,
    exists,
    list_objects,
    list_parts,
    read_object,
)
from orchestrator.deployment import Deployment, Lane
from orchestrator.errors import OrchestratorError, RoundFailed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# How long one receive waits for results (SQS long polling, at most 20 s), and how often S3 is asked without any.
_WAIT_S = 5
_LOOK_EVERY_S = 15.0
# A result of another running round is left for that round's orchestrator.
_FOREIGN_HIDDEN_S = 2
# The dead-letter queue keeps the letters of other rounds for days.
_LETTERS_LOOKED_AT = 1000


class BadShard(RoundFailed):
    """A shard that no delivery can average: the round is over."""

    def __init__(self, message: str, result: ShardResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class StoredShard:
    """A shard in S3; its CRC32 (base64) where S3 keeps one."""

    etag: str
    size: int
    crc32: str | None = None


@dataclass
class Collection:
    """What is known of a round's shards: stored in S3, and reported by workers (the newest result of each)."""

    stored: dict[int, StoredShard] = field(default_factory=dict)
    results: dict[int, ShardResult] = field(default_factory=dict)
    retries: list[ShardResult] = field(default_factory=list)


def stored_shards(s3: S3Client, bucket: str, manifest: RoundManifest) -> dict[int, StoredShard] | None:
    """The shards that S3 holds complete; None where the global model is published or the upload aborted."""
    output = manifest.output
    if output.upload_id is not None:
        try:
            parts = list_parts(s3, bucket, output.key, output.upload_id)
        except ClientError as error:
            if error_code(error) == "NoSuchUpload":
                return None
            raise
        found = {
            number - 1: StoredShard(part["ETag"], part["Size"], part.get("ChecksumCRC32"))
            for number, part in parts.items()
        }
    else:
        objects = {item["Key"]: item for item in list_objects(s3, bucket, shards_prefix(manifest.round_id))}
        keys = {shard: shard_key(manifest.round_id, shard, manifest.shards) for shard in range(manifest.shards)}
        found = {
            shard: StoredShard(objects[key]["ETag"], objects[key]["Size"])
            for shard, key in keys.items()
            if key in objects
        }
        # Whoever publishes deletes the shard objects.
        if len(found) < manifest.shards and exists(s3, bucket, output.key):
            return None
    # Sizes are checked here, not left to S3: a part of another size is as good as none.
    return {shard: stored for shard, stored in found.items() if stored.size == _expected_size(manifest, shard)}


def _expected_size(manifest: RoundManifest, shard: int) -> int:
    return manifest.shard_nbytes(shard) + len(head_of_shard(manifest, shard))


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
    """Wait until every shard is stored, filling `collection`.

    Args:
        timeout_s: how long to wait without any shard being finished.
        progress: called with the number of shards that are newly finished.

    Raises:
        BadShard: an update cannot be averaged; names client, tensor and reason.
        RoundFailed: a job is in the dead-letter queue, or nothing happened for `timeout_s`.
    """
    digest = sha256_hex(manifest.to_bytes())
    results = _Results(clients, deployment, manifest.round_id, digest)
    done = set(collection.stored)
    looked = moved = time.monotonic()
    _forget_dead_letters(clients, lane, digest)
    # Until the queue has been empty once, a job's last try may be one that an earlier run of this round gave up on.
    earlier = True
    while len(done) < manifest.shards:
        received = results.receive()
        earlier = earlier and bool(received)
        for result in received:
            if result.shard >= manifest.shards:
                continue
            if result.status == "failed":
                raise BadShard(
                    f"Round {manifest.round_id}: shard {result.shard} of {manifest.shards}: {result.error}. "
                    "Nothing was published.",
                    result,
                )
            if result.status == "retrying":
                collection.retries.append(result)
                log.warning(
                    "Shard %d, try %d of %d: %s",
                    result.shard,
                    result.receive_count,
                    lane.max_receive_count,
                    result.error,
                )
                if result.receive_count >= lane.max_receive_count and result.shard not in done and not earlier:
                    raise _gave_up(manifest, lane, result.shard, collection)
                continue
            collection.results[result.shard] = result
            if result.shard not in done:
                done.add(result.shard)
                moved = time.monotonic()
                progress(1)
        now = time.monotonic()
        if now - looked < _LOOK_EVERY_S:
            continue
        looked = now
        stored = stored_shards(clients.s3, deployment.bucket, manifest)
        if stored is None:
            return  # another orchestrator has published or aborted it; publish() finds out
        if set(stored) - done:
            progress(len(set(stored) - done))
            done |= set(stored)
            moved = now
        for shard in _dead_letters(clients, lane, digest).values():
            if shard not in done:
                raise _gave_up(manifest, lane, shard, collection)
        if now - moved > timeout_s:
            missing = sorted(set(range(manifest.shards)) - done)
            raise RoundFailed(
                f"Round {manifest.round_id}: {len(missing)} of {manifest.shards} shards (first: {missing[0]}) made no "
                f"progress for {timeout_s:.0f} s. Look at the log of {lane.function_name}; the same start-round "
                "continues the round."
            )


def _gave_up(manifest: RoundManifest, lane: Lane, shard: int, collection: Collection) -> RoundFailed:
    causes = [r.error for r in collection.retries if r.shard == shard and r.error]
    cause = (
        causes[-1] if causes else f"no result was sent (out of memory or time?); see the log of {lane.function_name}"
    )
    return RoundFailed(
        f"Round {manifest.round_id}: shard {shard} of {manifest.shards} failed {lane.max_receive_count} times and is "
        f"in the dead-letter queue {lane.dead_letter_queue_url}. Last cause: {cause}. Nothing was published; when the "
        "cause is gone, the same start-round continues the round."
    )


def _dead_letters(clients: Clients, lane: Lane, digest: str) -> dict[str, int]:
    """Receipt handle and shard of this manifest's jobs in the dead-letter queue; up to 1,000 letters are looked at."""
    found = {}
    for _ in range(_LETTERS_LOOKED_AT // 10):
        # Hidden for a moment, so that the next ten are others.
        messages = clients.sqs.receive_message(
            QueueUrl=lane.dead_letter_queue_url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=_FOREIGN_HIDDEN_S,
            WaitTimeSeconds=0,
        ).get("Messages", [])
        if not messages:
            break
        for message in messages:
            try:
                job = ShardJob.from_json(message["Body"])
            except InvalidContract:
                continue
            if job.manifest_sha256 == digest:
                found[message["ReceiptHandle"]] = job.shard
    return found


def _forget_dead_letters(clients: Clients, lane: Lane, digest: str) -> None:
    """Delete the dead letters of this manifest: an earlier run gave up on them, and their shards are queued again."""
    for handle in _dead_letters(clients, lane, digest):
        clients.sqs.delete_message(QueueUrl=lane.dead_letter_queue_url, ReceiptHandle=handle)


class _Results:
    """The environment's result queue, as one round sees it."""

    def __init__(self, clients: Clients, deployment: Deployment, round_id: str, digest: str) -> None:
        self._clients = clients
        self._bucket = deployment.bucket
        self._url = deployment.result_queue_url
        self._round_id = round_id
        self._digest = digest
        self._ended: dict[str, bool] = {}

    def receive(self) -> list[ShardResult]:
        """Results of this round, up to ten, waiting a few seconds for the first; what is handed out is deleted."""
        messages = self._clients.sqs.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=_WAIT_S
        ).get("Messages", [])
        mine, delete = [], []
        for message in messages:
            try:
                result = ShardResult.from_json(message["Body"])
            except InvalidContract as error:
                log.warning("Dropped a message that is no result: %s", error)
                delete.append(message)
                continue
            if result.manifest_sha256 == self._digest:
                mine.append(result)
                delete.append(message)
            elif result.round_id == self._round_id or self._has_ended(result.round_id):
                delete.append(message)
            else:
                self._clients.sqs.change_message_visibility(
                    QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=_FOREIGN_HIDDEN_S
                )
        if delete:
            entries: list[Any] = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(delete)]
            self._clients.sqs.delete_message_batch(QueueUrl=self._url, Entries=entries)
        return mine

    def _has_ended(self, round_id: str) -> bool:
        if not self._ended.get(round_id):
            self._ended[round_id] = exists(self._clients.s3, self._bucket, report_key(round_id))
        return self._ended[round_id]


# --- publication ---------------------------------------------------------------------------------------------------


def publish(s3: S3Client, bucket: str, manifest: RoundManifest) -> LatestModel:
    """Make the averaged shards the global model, whole or not at all, and move the model's `latest` pointer to it.

    Doing it again changes nothing. All shards must be stored.

    Raises:
        RoundFailed: a shard is missing, or the published object is not the round's.
    """
    key = manifest.output.key
    if not exists(s3, bucket, key):
        stored = stored_shards(s3, bucket, manifest)
        missing = sorted(set(range(manifest.shards)) - set(stored or {}))
        if stored is None and not exists(s3, bucket, key):
            raise RoundFailed(
                f"Round {manifest.round_id}: its multipart upload was aborted, by hand or by the bucket's "
                "lifecycle rule. Start a new round."
            )
        if stored is not None:
            if missing:
                raise RoundFailed(
                    f"Round {manifest.round_id}: shards {missing[:10]} are not stored with the size that the manifest "
                    "says. The same start-round queues them again."
                )
            if manifest.output.upload_id is not None:
                _complete(s3, bucket, manifest, stored)
            else:
                try:
                    _assemble(s3, bucket, manifest)
                except ClientError as error:
                    # Another orchestrator was faster, and has deleted the shard objects.
                    if error_code(error) != "NoSuchKey" or not exists(s3, bucket, key):
                        raise
    head = s3.head_object(Bucket=bucket, Key=key)
    expected = len(global_header(manifest.table)) + manifest.table.nbytes
    if head["ContentLength"] != expected:
        raise RoundFailed(
            f"Round {manifest.round_id}: s3://{bucket}/{key} has {head['ContentLength']} bytes, expected {expected}. "
            "Somebody else wrote it; start a new round."
        )
    latest = LatestModel(
        model=manifest.model,
        round_id=manifest.round_id,
        key=key,
        etag=head["ETag"],
        size=expected,
        tensors_sha256=manifest.table.sha256,
        pinned_at=manifest.created_at,
        published_at=time.time(),
    )
    _move_latest(s3, bucket, latest)
    if manifest.output.upload_id is None:
        _delete_shard_objects(s3, bucket, manifest)
    return latest


def _complete(s3: S3Client, bucket: str, manifest: RoundManifest, stored: dict[int, StoredShard]) -> None:
    assert manifest.output.upload_id is not None
    parts = [completed_part(s + 1, stored[s].etag, stored[s].crc32) for s in range(manifest.shards)]
    try:
        s3.complete_multipart_upload(
            Bucket=bucket,
            Key=manifest.output.key,
            UploadId=manifest.output.upload_id,
            MultipartUpload={"Parts": parts},
            IfNoneMatch="*",
        )
    except ClientError as error:
        # Another orchestrator was faster with the same parts; anything else is an error.
        if error_code(error) not in ("NoSuchUpload", "PreconditionFailed") or not exists(
            s3, bucket, manifest.output.key
        ):
            raise


def _assemble(s3: S3Client, bucket: str, manifest: RoundManifest) -> None:
    """Put shard objects together: only models whose shards are below S3's smallest part come this way."""
    size = len(global_header(manifest.table)) + manifest.table.nbytes
    with tempfile.TemporaryFile(prefix="global-") as file:
        file.write(global_header(manifest.table))
        for shard in range(manifest.shards):
            key = shard_key(manifest.round_id, shard, manifest.shards)
            for chunk in s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1024**2):
                file.write(chunk)
        if file.tell() != size:
            raise OrchestratorError(
                f"Round {manifest.round_id}: the shards add up to {file.tell()} bytes, expected {size}. "
                "Start the round again."
            )
        file.seek(0)
        create_large_object(s3, bucket, manifest.output.key, file, size, {})


def _delete_shard_objects(s3: S3Client, bucket: str, manifest: RoundManifest) -> None:
    keys = [shard_key(manifest.round_id, shard, manifest.shards) for shard in range(manifest.shards)]
    for i in range(0, len(keys), 1000):
        s3.delete_objects(
            Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys[i : i + 1000]], "Quiet": True}
        )


def _move_latest(s3: S3Client, bucket: str, latest: LatestModel) -> None:
    """Compare and swap, so that of two rounds that publish at once the one that was pinned later stays."""
    key = latest_key(latest.model)
    while True:
        found = read_object(s3, bucket, key)
        if found is not None:
            current = LatestModel.from_bytes(found[0])
            if current.round_id == latest.round_id or current.pinned_at > latest.pinned_at:
                return
        condition: Any = {"IfMatch": found[1]} if found else {"IfNoneMatch": "*"}
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=latest.to_bytes(), ContentType="application/json", **condition)
            return
        except ClientError as error:
            if error_code(error) not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise
