"""Which shards S3 holds: the truth about a round's progress, whatever messages were lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from lambdas.protocol.keys import shards_prefix
from lambdas.protocol.manifest import RoundManifest
from lambdas.storage.bucket import Bucket
from lambdas.storage.shards import from_s3_checksum, shard_size
from orchestrator.aws.s3 import error_code, exists, list_objects, list_parts

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class StoredShard:
    """A shard in S3; its SHA-256 (hexadecimal) where a listing gives it."""

    etag: str
    size: int
    sha256: str | None = None


def stored_shards(bucket: Bucket, manifest: RoundManifest) -> dict[int, StoredShard] | None:
    """The shards that S3 holds complete; None where the global model is published or the upload aborted."""
    output = manifest.output
    if output.upload_id is not None:
        try:
            parts = list_parts(bucket, output.key, output.upload_id)
        except ClientError as error:
            if error_code(error) == "NoSuchUpload":
                return None
            raise
        found = {
            number - 1: StoredShard(part["ETag"], part["Size"], from_s3_checksum(part.get("ChecksumSHA256")))
            for number, part in parts.items()
        }
    else:
        objects = {item["Key"]: item for item in list_objects(bucket, shards_prefix(manifest.round_id))}
        keys = {shard: manifest.shard_key(shard) for shard in range(manifest.shards)}
        found = {
            shard: StoredShard(objects[key]["ETag"], objects[key]["Size"])
            for shard, key in keys.items()
            if key in objects
        }
        # Whoever publishes deletes the shard objects.
        if len(found) < manifest.shards and exists(bucket, output.key):
            return None
    # Sizes are checked here, not left to S3: a part of another size is as good as none.
    return {shard: stored for shard, stored in found.items() if stored.size == shard_size(manifest, shard)}
