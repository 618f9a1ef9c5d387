"""Publishing a round: its stored shards become one object atomically, and the model's pointer moves to it."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass

from botocore.exceptions import ClientError

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.keys import latest_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.safetensors import global_header
from lambdas.storage.bucket import Bucket
from lambdas.storage.shards import Written, head_of_shard, to_s3_checksum
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
from orchestrator.rounds.stored import stored_shards

# CompleteMultipartUpload is sent at most this many times while another conditional write to the key is in progress.
_CONFLICTS = 6
# Shard objects that are read at once when they are put together here.
_SHARDS_AT_ONCE = 8


@dataclass(frozen=True)
class Published:
    """What a round has published: the pointer to the global model, and the SHA-256 of every shard as it was stored."""

    latest: LatestModel
    shard_sha256: tuple[str, ...]


def publish(bucket: Bucket, manifest: RoundManifest, reported: Mapping[int, str] | None = None) -> Published:
    """Make the averaged shards the global model, in one atomic step, and move the model's `latest` pointer to it.

    All shards must be stored. The call is idempotent.

    Args:
        reported: SHA-256 by shard, as far as results arrived. Where one is missing, S3's checksum of the part is used;
            where there is none, the shard is read from the published model.

    Raises:
        RoundFailed: a shard is missing or was changed after its worker stored it, the upload was aborted, or the object
            at the global model's key is not the round's.
    """
    digests = dict(reported or {})
    if not exists(bucket, manifest.output.key):
        _store_global_model(bucket, manifest, digests)
    latest = _pointer(bucket, manifest)
    _move_latest(bucket, latest)
    if manifest.output.upload_id is None:
        delete_objects(bucket, [manifest.shard_key(shard) for shard in range(manifest.shards)])
    for shard in set(range(manifest.shards)) - set(digests):
        digests[shard] = _published_digest(bucket, manifest, latest, shard)
    return Published(latest, tuple(digests[shard] for shard in range(manifest.shards)))


def _store_global_model(bucket: Bucket, manifest: RoundManifest, digests: dict[int, str]) -> None:
    """Put the stored shards together at the global model's key, unless another coordinator does so first."""
    key = manifest.output.key
    stored = stored_shards(bucket, manifest)
    if stored is None:
        if not exists(bucket, key):
            raise upload_gone(manifest)
        return
    missing = sorted(set(range(manifest.shards)) - set(stored))
    if missing:
        raise RoundFailed(
            f"Round {manifest.round_id}: shards {missing[:10]} are not stored with the size that the manifest "
            f"says. `orchestrator resume --round {manifest.round_id}` queues them again."
        )
    if manifest.output.upload_id is not None:
        _complete(bucket, manifest, stored, digests)
        return
    try:
        _assemble(bucket, manifest, digests)
    except ClientError as error:
        # Another coordinator was faster, and has deleted the shard objects.
        if error_code(error) != "NoSuchKey" or not exists(bucket, key):
            raise


def _pointer(bucket: Bucket, manifest: RoundManifest) -> LatestModel:
    """The pointer to the stored global model.

    Raises:
        RoundFailed: the object has another size than the round's model.
    """
    key = manifest.output.key
    head = bucket.s3.head_object(Bucket=bucket.name, Key=key)
    expected = len(global_header(manifest.table)) + manifest.table.nbytes
    if head["ContentLength"] != expected:
        raise RoundFailed(
            f"Round {manifest.round_id}: s3://{bucket.name}/{key} has {head['ContentLength']} bytes, expected "
            f"{expected}. Somebody else wrote it; start a new round."
        )
    return LatestModel(
        model=manifest.model,
        round_id=manifest.round_id,
        key=key,
        etag=head["ETag"],
        size=expected,
        tensors_sha256=manifest.table.sha256,
        pinned_at=manifest.created_at,
        published_at=time.time(),
    )


def _check_digest(manifest: RoundManifest, shard: int, found: str, digests: dict[int, str]) -> None:
    """Note a stored shard's digest.

    Raises:
        RoundFailed: it differs from the digest that the worker reported.
    """
    if digests.setdefault(shard, found) != found:
        where = (
            f"part {shard + 1} of the multipart upload to {manifest.output.key}"
            if manifest.output.upload_id is not None
            else manifest.shard_key(shard)
        )
        raise RoundFailed(
            f"Round {manifest.round_id}: shard {shard} of {manifest.shards} was changed after its worker had stored "
            f"it: {where} has SHA-256 {found}, the worker reported {digests[shard]}. Nothing was published. Find out "
            "who can write to that key, and start a new round."
        )


def _published_digest(bucket: Bucket, manifest: RoundManifest, latest: LatestModel, shard: int) -> str:
    """SHA-256 of a shard whose worker's result was lost, computed from the published model."""
    digest = hashlib.sha256()
    start, stop = shard_region(manifest, shard)
    for chunk in read_chunks(bucket, latest.key, start, stop, latest.etag):
        digest.update(chunk)
    return digest.hexdigest()


def shard_region(manifest: RoundManifest, shard: int) -> tuple[int, int]:
    """The bytes start <= b < stop of the global model's file that a shard makes up."""
    offset = len(global_header(manifest.table))
    start = offset + manifest.table.byte_at(manifest.bounds[shard]) - len(head_of_shard(manifest, shard))
    return start, offset + manifest.table.byte_at(manifest.bounds[shard + 1])


def _complete(bucket: Bucket, manifest: RoundManifest, stored: dict[int, Written], digests: dict[int, str]) -> None:
    """Complete the multipart upload, unless the global model exists."""
    output = manifest.output
    assert output.upload_id is not None
    for attempt in itertools.count(1):
        parts = []
        for shard in range(manifest.shards):
            etag, sha256 = stored[shard].etag, stored[shard].sha256
            if sha256 is not None:
                _check_digest(manifest, shard, sha256, digests)
            parts.append(completed_part(shard + 1, etag, ChecksumSHA256=to_s3_checksum(sha256) if sha256 else None))
        try:
            # S3 may answer 200 with an error in the body. boto3 treats that as a 500 and repeats the request.
            bucket.s3.complete_multipart_upload(
                Bucket=bucket.name,
                Key=output.key,
                UploadId=output.upload_id,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
            return
        except ClientError as error:
            code = error_code(error)
            lost = code in ("NoSuchUpload", "PreconditionFailed", "ConditionalRequestConflict")
            if lost and exists(bucket, output.key):
                return  # Completed with the same parts: by another coordinator, or by this one if the answer was lost.
            if code == "NoSuchUpload":
                raise upload_gone(manifest) from error
            if attempt >= _CONFLICTS:
                raise
            if code == "ConditionalRequestConflict":  # Another write to the same key is in progress.
                time.sleep(random.uniform(0, 0.2 * 2**attempt))
                continue
            # A part was stored again after the parts were listed, by a job that was delivered twice. With a KMS key,
            # equal bytes get another ETag.
            again = stored_shards(bucket, manifest) if code == "InvalidPart" else None
            if again is None or len(again) != manifest.shards:
                raise
            stored = again


def upload_gone(manifest: RoundManifest) -> RoundFailed:
    """The error of a round whose multipart upload was aborted."""
    return RoundFailed(
        f"Round {manifest.round_id}: its multipart upload was aborted, by hand or by the bucket's lifecycle rule, and "
        f"the shards that were done are lost. `orchestrator abort --round {manifest.round_id}` and start a new round."
    )


def _assemble(bucket: Bucket, manifest: RoundManifest, digests: dict[int, str]) -> None:
    """Put shard objects together. Rounds use them only if shards are below S3's smallest part."""
    size = len(global_header(manifest.table)) + manifest.table.nbytes

    def read(shard: int) -> bytes:
        return get_bytes(bucket, Key=manifest.shard_key(shard))[0]

    with tempfile.TemporaryFile(prefix="global-") as file:
        file.write(global_header(manifest.table))
        # Each is below S3's smallest part, so that a few of them fit into memory.
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


def _move_latest(bucket: Bucket, latest: LatestModel) -> None:
    """Move the pointer by compare-and-swap. Of two rounds that publish at once, the one that was pinned later stays."""
    key = latest_key(latest.model)
    while True:
        found = read_object(bucket, key)
        if found is not None:
            current = LatestModel.from_bytes(found[0])
            if current.round_id == latest.round_id or current.pinned_at > latest.pinned_at:
                return
        if swap_object(bucket, key, latest.to_bytes(), found[1] if found else None):
            return
