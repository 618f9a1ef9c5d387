"""Where an averaged shard goes: a part of the round's multipart upload, or an object of its own.

A shard is spooled to a temporary file (Lambda's /tmp) while it is averaged and sent when it is complete: memory stays
flat, a failed upload is repeated without reading the updates again, and the connection is never idle for so long
that S3 gives up on it.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from lambdas.protocol.errors import FederationError, InvalidContract, StorageUnavailable, Superseded
from lambdas.protocol.limits import MAX_PART_BYTES, MIN_PART_BYTES
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.safetensors import global_header
from lambdas.storage.bucket import Bucket

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Written:
    """A shard in S3: its ETag, SHA-256 (None where it was found there and S3 keeps none) and length in bytes."""

    etag: str
    sha256: str | None
    nbytes: int


def to_s3_checksum(sha256: str) -> str:
    """A SHA-256 in hexadecimal as S3 takes it, in base64."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def from_s3_checksum(checksum: str | None) -> str | None:
    """The `ChecksumSHA256` that S3 keeps with a part or object, in hexadecimal; None where it keeps none."""
    try:
        digest = base64.b64decode(checksum or "", validate=True)
    except ValueError:  # of an object made of parts: a digest of digests, with their number behind it
        return None
    return digest.hex() if len(digest) == 32 else None


def head_of_shard(manifest: RoundManifest, shard: int) -> bytes:
    """What comes in front of a shard's values: the global model's file header for part 1, else nothing."""
    return global_header(manifest.table) if shard == 0 and manifest.output.kind == "multipart" else b""


def shard_size(manifest: RoundManifest, shard: int) -> int:
    """Bytes of a shard as it is stored, with what comes in front of its values."""
    return manifest.shard_nbytes(shard) + len(head_of_shard(manifest, shard))


def check_size(manifest: RoundManifest, shard: int) -> int:
    """The same, where S3 takes so many bytes: its limits on parts are not left to S3, or to an emulator, to enforce.

    S3 itself finds a part too small only when the upload is completed, after all the work, and not every emulator does.

    Raises:
        InvalidContract: the shard is too large to be stored, or too small to be a part.
    """
    size = shard_size(manifest, shard)
    what = f"Storing shard {shard} of {manifest.shards} of round {manifest.round_id}: {size} bytes"
    if size > MAX_PART_BYTES:
        raise InvalidContract(f"{what} are more than S3 takes at once, {MAX_PART_BYTES}; the round needs more shards.")
    if manifest.output.kind == "multipart" and size < MIN_PART_BYTES and shard < manifest.shards - 1:
        raise InvalidContract(
            f"{what} are less than S3's smallest part, {MIN_PART_BYTES}, and only the last may be smaller; the round "
            "needs fewer shards, or an object for each."
        )
    return size


class ShardSink:
    """Takes one shard's bytes in order; `finish` stores them under the name that manifest and shard index determine.

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
        """Store the shard; storing it again replaces it with equal bytes.

        Raises:
            Superseded: the round's upload is finished or aborted.
            StorageUnavailable: boto3's retries are used up.
        """
        if self._nbytes != self._expected:
            raise FederationError(
                f"Storing shard {self._shard} of {self._manifest.shards}: {self._nbytes} bytes averaged, the manifest "
                f"says {self._expected}."
            )
        self._spool.seek(0)
        output = self._manifest.output
        # The digest of what was averaged, not of what the spool gives back: S3 compares, and keeps it with the shard.
        # And boto3 sends the file as it is; to append a checksum of its own, it would cut the body into chunks, for
        # twice the CPU time.
        sha256 = self._sha256.hexdigest()
        checksum = to_s3_checksum(sha256)
        try:
            if output.upload_id is not None:
                etag = self._bucket.s3.upload_part(
                    Bucket=self._bucket.name,
                    Key=output.key,
                    UploadId=output.upload_id,
                    PartNumber=self._shard + 1,
                    Body=self._spool,
                    ContentLength=self._nbytes,
                    ChecksumSHA256=checksum,
                )["ETag"]
            else:
                key = self._manifest.shard_key(self._shard)
                etag = self._bucket.s3.put_object(
                    Bucket=self._bucket.name,
                    Key=key,
                    Body=self._spool,
                    ContentLength=self._nbytes,
                    ChecksumSHA256=checksum,
                )["ETag"]
        except (ClientError, BotoCoreError) as error:
            raise self._translated(error) from error
        return Written(etag, sha256, self._nbytes)

    def close(self) -> None:
        """Drop the spool."""
        self._spool.close()

    def _translated(self, error: Exception) -> FederationError:
        return _translated(error, f"Storing shard {self._shard} of {self._manifest.shards}")


def find_shard(bucket: Bucket, manifest: RoundManifest, shard: int) -> Written | None:
    """The shard, if it is already stored with the expected length; None if it is not.

    Raises:
        Superseded: the round's upload is finished or aborted.
        StorageUnavailable: boto3's retries are used up.
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
        head = bucket.s3.head_object(Bucket=bucket.name, Key=manifest.shard_key(shard), ChecksumMode="ENABLED")
        if head["ContentLength"] != expected:
            return None
        return Written(head["ETag"], from_s3_checksum(head.get("ChecksumSHA256")), expected)
    except (ClientError, BotoCoreError) as error:
        if isinstance(error, ClientError) and error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise _translated(error, f"Looking for shard {shard} of {manifest.shards}") from error


def _translated(error: Exception, what: str) -> FederationError:
    if isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchUpload":
        return Superseded(f"{what}: the round's multipart upload is finished or aborted.")
    return StorageUnavailable(f"{what}: {error}")
