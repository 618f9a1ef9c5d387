"""Stores averaged shards: each as a part of the round's multipart upload, or as an object of its own.

A shard is written to a temporary file (Lambda's /tmp) while it is averaged, and sent when it is complete. So memory
does not grow with the shard, a failed upload is repeated without reading the updates again, and S3 does not time out
while the worker averages.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from dataclasses import dataclass
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError

from lambdas.protocol.errors import FederationError, InvalidContract, StorageUnavailable, Superseded
from lambdas.protocol.limits import MAX_PART_BYTES, MIN_PART_BYTES
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.safetensors import global_header
from lambdas.storage.bucket import Bucket


@dataclass(frozen=True)
class Written:
    """A stored object or part: ETag, SHA-256 (None where S3 has no checksum of it) and length in bytes."""

    etag: str
    sha256: str | None
    nbytes: int


def to_s3_checksum(sha256: str) -> str:
    """A SHA-256 in hexadecimal in S3's form, base64."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def from_s3_checksum(checksum: str | None) -> str | None:
    """S3's `ChecksumSHA256` of a part or object in hexadecimal; None where S3 has none."""
    try:
        digest = base64.b64decode(checksum or "", validate=True)
    except ValueError:  # an object made of parts has a digest of digests, followed by the number of parts
        return None
    return digest.hex() if len(digest) == 32 else None


def head_of_shard(manifest: RoundManifest, shard: int) -> bytes:
    """The bytes in front of a shard's values: the global model's file header for part 1, else nothing."""
    return global_header(manifest.table) if shard == 0 and manifest.output.kind == "multipart" else b""


def shard_size(manifest: RoundManifest, shard: int) -> int:
    """Bytes of a shard as it is stored, including the file header of part 1."""
    return manifest.shard_nbytes(shard) + len(head_of_shard(manifest, shard))


def check_size(manifest: RoundManifest, shard: int) -> int:
    """The size of a shard, checked against S3's limits of parts.

    S3 refuses a part that is too small only when the upload is completed, and some emulators never do.

    Raises:
        InvalidContract: the shard is too large to be stored, or too small to be a part.
    """
    size = shard_size(manifest, shard)
    what = f"Storing shard {shard} of {manifest.shards} of round {manifest.round_id}: {size} bytes"
    if size > MAX_PART_BYTES:
        raise InvalidContract(
            f"{what} are more than the limit of a part, {MAX_PART_BYTES}; the round needs more shards."
        )
    if manifest.output.kind == "multipart" and size < MIN_PART_BYTES and shard < manifest.shards - 1:
        raise InvalidContract(
            f"{what} are less than S3's smallest part, {MIN_PART_BYTES}, and only the last part may be smaller; the "
            "round needs fewer shards, or one object per shard."
        )
    return size


class ShardSink:
    """Collects the bytes of one shard, in order, and stores them where the manifest says.

    Raises:
        InvalidContract: see `check_size`.
    """

    def __init__(self, bucket: Bucket, manifest: RoundManifest, shard: int) -> None:
        self._bucket = bucket
        self._manifest = manifest
        self._shard = shard
        self._expected = check_size(manifest, shard)
        self._spool: IO[bytes] = tempfile.TemporaryFile(prefix="shard-")  # noqa: SIM115 (closed by close())
        self._sha256 = hashlib.sha256()
        self._nbytes = 0
        self.write(memoryview(head_of_shard(manifest, shard)))

    def write(self, piece: memoryview) -> None:
        """Append bytes."""
        self._spool.write(piece)
        self._sha256.update(piece)
        self._nbytes += len(piece)

    def finish(self) -> Written:
        """Store the shard; if it is stored already, it is replaced with equal bytes.

        Raises:
            Superseded: the round's upload is completed or aborted.
            StorageUnavailable: all of boto3's retries failed.
        """
        if self._nbytes != self._expected:
            raise FederationError(
                f"Storing shard {self._shard} of {self._manifest.shards}: {self._nbytes} bytes averaged, the manifest "
                f"says {self._expected}."
            )
        self._spool.seek(0)
        sha256 = self._sha256.hexdigest()
        try:
            etag = self._send(to_s3_checksum(sha256))
        except (ClientError, BotoCoreError) as error:
            raise _translated(error, f"Storing shard {self._shard} of {self._manifest.shards}") from error
        return Written(etag, sha256, self._nbytes)

    def _send(self, checksum: str) -> str:
        """Upload the temporary file; returns the ETag.

        The checksum is of the averaged bytes, not of what the file returns, so S3 detects a difference. It also keeps
        boto3 from adding a checksum of its own, which takes twice the CPU time because the body is sent in chunks.
        """
        s3, output = self._bucket.s3, self._manifest.output
        body: Any = {"Body": self._spool, "ContentLength": self._nbytes, "ChecksumSHA256": checksum}
        if output.upload_id is None:
            key = self._manifest.shard_key(self._shard)
            return s3.put_object(Bucket=self._bucket.name, Key=key, **body)["ETag"]
        part: Any = {"Key": output.key, "UploadId": output.upload_id, "PartNumber": self._shard + 1}
        return s3.upload_part(Bucket=self._bucket.name, **part, **body)["ETag"]

    def close(self) -> None:
        """Delete the temporary file."""
        self._spool.close()


def find_shard(bucket: Bucket, manifest: RoundManifest, shard: int) -> Written | None:
    """The shard, if it is stored already with the expected length, else None.

    Raises:
        Superseded: the round's upload is completed or aborted.
        StorageUnavailable: all of boto3's retries failed.
    """
    expected = shard_size(manifest, shard)
    output = manifest.output
    try:
        if output.upload_id is not None:
            found = bucket.s3.list_parts(
                Bucket=bucket.name, Key=output.key, UploadId=output.upload_id, PartNumberMarker=shard, MaxParts=1
            ).get("Parts", [])
            part = next((p for p in found if p["PartNumber"] == shard + 1), None)
            if part is None or part["Size"] != expected:
                return None
            return Written(part["ETag"], from_s3_checksum(part.get("ChecksumSHA256")), expected)
        return find_object(bucket, manifest.shard_key(shard), expected)
    except (ClientError, BotoCoreError) as error:
        raise _translated(error, f"Looking for shard {shard} of {manifest.shards}") from error


def find_object(bucket: Bucket, key: str, nbytes: int) -> Written | None:
    """An object of `nbytes` bytes, None if there is none. Raises boto3's errors."""
    try:
        head = bucket.s3.head_object(Bucket=bucket.name, Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    if head["ContentLength"] != nbytes:
        return None
    return Written(head["ETag"], from_s3_checksum(head.get("ChecksumSHA256")), nbytes)


def _translated(error: Exception, what: str) -> FederationError:
    if isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchUpload":
        return Superseded(f"{what}: the round's multipart upload is completed or aborted.")
    return StorageUnavailable(f"{what}: {error}")
