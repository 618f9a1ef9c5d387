"""From stored shards to the published model: one atomic object, and the pointer to it."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from lambdas.contract import LatestModel, RoundManifest, latest_key, shard_key
from lambdas.sinks import head_of_shard, to_s3_checksum
from lambdas.tensors import global_header
from orchestrator.aws import completed_part, create_large_object, error_code, exists, read_object
from orchestrator.errors import OrchestratorError, RoundFailed
from orchestrator.stored import StoredShard, stored_shards

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Published:
    """What a round published: the pointer to it, and the SHA-256 of every shard as it was stored."""

    latest: LatestModel
    shard_sha256: tuple[str, ...]


def publish(s3: S3Client, bucket: str, manifest: RoundManifest, reported: Mapping[int, str] | None = None) -> Published:
    """Make the averaged shards the global model, whole or not at all, and move the model's `latest` pointer to it.

    Doing it again changes nothing. All shards must be stored.

    Args:
        reported: SHA-256 of shards, as far as their workers' results arrived. S3 keeps the digest of a part, so that
            a message which was lost costs nothing; where there is neither, the shard is read.

    Raises:
        RoundFailed: a shard is missing or is not the one that its worker stored, or the published object is not the
            round's.
    """
    key = manifest.output.key
    digests = dict(reported or {})
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
                for shard, part in stored.items():
                    if part.sha256 is not None:
                        _check_digest(manifest, shard, part.sha256, digests)
                _complete(s3, bucket, manifest, stored)
            else:
                try:
                    _assemble(s3, bucket, manifest, digests)
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
    for shard in set(range(manifest.shards)) - set(digests):
        digests[shard] = _published_digest(s3, bucket, manifest, latest, shard)
    return Published(latest, tuple(digests[shard] for shard in range(manifest.shards)))


def _check_digest(manifest: RoundManifest, shard: int, found: str, digests: dict[int, str]) -> None:
    """Note a stored shard's digest, or refuse one that differs from what its worker reported."""
    if digests.setdefault(shard, found) != found:
        where = (
            f"part {shard + 1} of the multipart upload to {manifest.output.key}"
            if manifest.output.upload_id is not None
            else shard_key(manifest.round_id, shard, manifest.shards)
        )
        raise RoundFailed(
            f"Round {manifest.round_id}: shard {shard} of {manifest.shards} was changed after its worker had stored "
            f"it: {where} has SHA-256 {found}, the worker reported {digests[shard]}. Nothing was published. Find out "
            "who can write there, and start a new round."
        )


def _published_digest(s3: S3Client, bucket: str, manifest: RoundManifest, latest: LatestModel, shard: int) -> str:
    """SHA-256 of a shard whose worker's result was lost, read from the published model."""
    digest = hashlib.sha256()
    start, stop = shard_region(manifest, shard)
    if start < stop:
        body = s3.get_object(Bucket=bucket, Key=latest.key, Range=f"bytes={start}-{stop - 1}", IfMatch=latest.etag)
        for chunk in body["Body"].iter_chunks(1024**2):
            digest.update(chunk)
    return digest.hexdigest()


def shard_region(manifest: RoundManifest, shard: int) -> tuple[int, int]:
    """The bytes start <= b < stop of the global model's file that a shard was stored as."""
    offset = len(global_header(manifest.table))
    start = offset + manifest.table.byte_at(manifest.bounds[shard]) - len(head_of_shard(manifest, shard))
    return start, offset + manifest.table.byte_at(manifest.bounds[shard + 1])


def _complete(s3: S3Client, bucket: str, manifest: RoundManifest, stored: dict[int, StoredShard]) -> None:
    assert manifest.output.upload_id is not None
    parts = [completed_part(s + 1, stored[s].etag, ChecksumSHA256=_checksum(stored[s])) for s in range(manifest.shards)]
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


def _checksum(part: StoredShard) -> str | None:
    return to_s3_checksum(part.sha256) if part.sha256 else None


def _assemble(s3: S3Client, bucket: str, manifest: RoundManifest, digests: dict[int, str]) -> None:
    """Put shard objects together: only models whose shards are below S3's smallest part come this way."""
    size = len(global_header(manifest.table)) + manifest.table.nbytes
    with tempfile.TemporaryFile(prefix="global-") as file:
        file.write(global_header(manifest.table))
        for shard in range(manifest.shards):
            key = shard_key(manifest.round_id, shard, manifest.shards)
            digest = hashlib.sha256()
            for chunk in s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1024**2):
                file.write(chunk)
                digest.update(chunk)
            _check_digest(manifest, shard, digest.hexdigest(), digests)
        if file.tell() != size:
            raise OrchestratorError(
                f"Round {manifest.round_id}: the shards add up to {file.tell()} bytes, expected {size}. "
                "Start the round again."
            )
        file.seek(0)
        create_large_object(s3, bucket, manifest.output.key, file, size)


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
