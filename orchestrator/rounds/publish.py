"""From stored shards to the published model: one atomic object, and the pointer to it."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.keys import latest_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.safetensors import global_header
from lambdas.storage.bucket import Bucket
from lambdas.storage.shards import head_of_shard, to_s3_checksum
from orchestrator.aws.s3 import (
    completed_part,
    create_large_object,
    delete_objects,
    error_code,
    exists,
    get_bytes,
    read_chunks,
    read_object,
    swap_object,
)
from orchestrator.errors import OrchestratorError, RoundFailed
from orchestrator.rounds.stored import StoredShard, stored_shards

if TYPE_CHECKING:
    pass

# How often CompleteMultipartUpload is asked again where another conditional write to the key is under way.
_CONFLICTS = 6
# Shards that are read at once where they are put together here.
_SHARDS_AT_ONCE = 8


@dataclass(frozen=True)
class Published:
    """What a round published: the pointer to it, and the SHA-256 of every shard as it was stored."""

    latest: LatestModel
    shard_sha256: tuple[str, ...]


def publish(bucket: Bucket, manifest: RoundManifest, reported: Mapping[int, str] | None = None) -> Published:
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
    if not exists(bucket, key):
        stored = stored_shards(bucket, manifest)
        missing = sorted(set(range(manifest.shards)) - set(stored or {}))
        if stored is None and not exists(bucket, key):
            raise upload_gone(manifest)
        if stored is not None:
            if missing:
                raise RoundFailed(
                    f"Round {manifest.round_id}: shards {missing[:10]} are not stored with the size that the manifest "
                    "says. `orchestrator resume --round "
                    f"{manifest.round_id}` queues them again."
                )
            if manifest.output.upload_id is not None:
                _complete(bucket, manifest, stored, digests)
            else:
                try:
                    _assemble(bucket, manifest, digests)
                except ClientError as error:
                    # Another orchestrator was faster, and has deleted the shard objects.
                    if error_code(error) != "NoSuchKey" or not exists(bucket, key):
                        raise
    head = bucket.s3.head_object(Bucket=bucket.name, Key=key)
    expected = len(global_header(manifest.table)) + manifest.table.nbytes
    if head["ContentLength"] != expected:
        raise RoundFailed(
            f"Round {manifest.round_id}: s3://{bucket.name}/{key} has {head['ContentLength']} bytes, expected "
            f"{expected}. Somebody else wrote it; start a new round."
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
    _move_latest(bucket, latest)
    if manifest.output.upload_id is None:
        _delete_shard_objects(bucket, manifest)
    for shard in set(range(manifest.shards)) - set(digests):
        digests[shard] = _published_digest(bucket, manifest, latest, shard)
    return Published(latest, tuple(digests[shard] for shard in range(manifest.shards)))


def _check_digest(manifest: RoundManifest, shard: int, found: str, digests: dict[int, str]) -> None:
    """Note a stored shard's digest, or refuse one that differs from what its worker reported."""
    if digests.setdefault(shard, found) != found:
        where = (
            f"part {shard + 1} of the multipart upload to {manifest.output.key}"
            if manifest.output.upload_id is not None
            else manifest.shard_key(shard)
        )
        raise RoundFailed(
            f"Round {manifest.round_id}: shard {shard} of {manifest.shards} was changed after its worker had stored "
            f"it: {where} has SHA-256 {found}, the worker reported {digests[shard]}. Nothing was published. Find out "
            "who can write there, and start a new round."
        )


def _published_digest(bucket: Bucket, manifest: RoundManifest, latest: LatestModel, shard: int) -> str:
    """SHA-256 of a shard whose worker's result was lost, read from the published model."""
    digest = hashlib.sha256()
    start, stop = shard_region(manifest, shard)
    for chunk in read_chunks(bucket, latest.key, start, stop, latest.etag):
        digest.update(chunk)
    return digest.hexdigest()


def shard_region(manifest: RoundManifest, shard: int) -> tuple[int, int]:
    """The bytes start <= b < stop of the global model's file that a shard was stored as."""
    offset = len(global_header(manifest.table))
    start = offset + manifest.table.byte_at(manifest.bounds[shard]) - len(head_of_shard(manifest, shard))
    return start, offset + manifest.table.byte_at(manifest.bounds[shard + 1])


def _complete(bucket: Bucket, manifest: RoundManifest, stored: dict[int, StoredShard], digests: dict[int, str]) -> None:
    assert manifest.output.upload_id is not None
    for attempt in itertools.count(1):
        for shard, part in stored.items():
            if part.sha256 is not None:
                _check_digest(manifest, shard, part.sha256, digests)
        parts = [
            completed_part(s + 1, stored[s].etag, ChecksumSHA256=_checksum(stored[s])) for s in range(manifest.shards)
        ]
        try:
            # S3 may answer 200 and put an error into the body; boto3 takes that for a 500 and asks again.
            bucket.s3.complete_multipart_upload(
                Bucket=bucket.name,
                Key=manifest.output.key,
                UploadId=manifest.output.upload_id,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
            return
        except ClientError as error:
            code = error_code(error)
            if code in ("NoSuchUpload", "PreconditionFailed", "ConditionalRequestConflict"):
                # Another orchestrator was faster with the same parts, or this one was, and its answer was lost.
                if exists(bucket, manifest.output.key):
                    return
                # Somebody else writes to the same key at this moment.
                if code == "ConditionalRequestConflict" and attempt < _CONFLICTS:
                    time.sleep(random.uniform(0, 0.2 * 2**attempt))
                    continue
                if code == "NoSuchUpload":
                    raise upload_gone(manifest) from error
            if code == "InvalidPart" and attempt < _CONFLICTS:
                # A job that was delivered twice has stored its part again since the parts were listed. Under a KMS key
                # equal bytes get another ETag.
                again = stored_shards(bucket, manifest)
                if again is not None and len(again) == manifest.shards:
                    stored = again
                    continue
            raise


def upload_gone(manifest: RoundManifest) -> RoundFailed:
    """The error of a round whose multipart upload was aborted."""
    return RoundFailed(
        f"Round {manifest.round_id}: its multipart upload was aborted, by hand or by the bucket's lifecycle rule, and "
        f"with it the shards that were done. `orchestrator abort --round {manifest.round_id}` and start a new round."
    )


def _checksum(part: StoredShard) -> str | None:
    return to_s3_checksum(part.sha256) if part.sha256 else None


def _assemble(bucket: Bucket, manifest: RoundManifest, digests: dict[int, str]) -> None:
    """Put shard objects together: only models whose shards are below S3's smallest part come this way."""
    size = len(global_header(manifest.table)) + manifest.table.nbytes

    def read(shard: int) -> bytes:
        return get_bytes(bucket, Key=manifest.shard_key(shard))[0]

    with tempfile.TemporaryFile(prefix="global-") as file:
        file.write(global_header(manifest.table))
        # Each is below S3's smallest part, so a few of them at once fit into memory.
        with concurrent.futures.ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
            for first in range(0, manifest.shards, _SHARDS_AT_ONCE):
                some = range(first, min(first + _SHARDS_AT_ONCE, manifest.shards))
                for shard, body in zip(some, pool.map(read, some), strict=True):
                    _check_digest(manifest, shard, sha256_hex(body), digests)
                    file.write(body)
        if file.tell() != size:
            raise OrchestratorError(
                f"Round {manifest.round_id}: the shards add up to {file.tell()} bytes, expected {size}. "
                f"`orchestrator resume --round {manifest.round_id}` tries again."
            )
        file.seek(0)
        create_large_object(bucket, manifest.output.key, file, size)


def _delete_shard_objects(bucket: Bucket, manifest: RoundManifest) -> None:
    delete_objects(bucket, [manifest.shard_key(shard) for shard in range(manifest.shards)])


def _move_latest(bucket: Bucket, latest: LatestModel) -> None:
    """Compare and swap, so that of two rounds that publish at once the one that was pinned later stays."""
    key = latest_key(latest.model)
    while True:
        found = read_object(bucket, key)
        if found is not None:
            current = LatestModel.from_bytes(found[0])
            if current.round_id == latest.round_id or current.pinned_at > latest.pinned_at:
                return
        if swap_object(bucket, key, latest.to_bytes(), found[1] if found else None):
            return
