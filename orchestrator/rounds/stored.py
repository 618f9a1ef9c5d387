"""The shards that S3 holds. They show the progress of a round, also when messages were lost."""

from __future__ import annotations

from dataclasses import dataclass

from botocore.exceptions import ClientError

from lambdas.protocol.keys import shards_prefix
from lambdas.protocol.manifest import RoundManifest
from lambdas.storage.bucket import Bucket
from lambdas.storage.shards import from_s3_checksum, shard_size
from orchestrator.aws.s3 import error_code, exists, list_objects, list_parts


@dataclass(frozen=True)
class StoredShard:
    """A shard in S3. `sha256`, in hexadecimal, is known where a listing returns it."""

    etag: str
    size: int
    sha256: str | None = None


def stored_shards(bucket: Bucket, manifest: RoundManifest) -> dict[int, StoredShard] | None:
    """The shards that S3 holds completely; None where the global model is published or the upload was aborted."""
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
        # Publishing deletes the shard objects.
        if len(found) < manifest.shards and exists(bucket, output.key):
            return None
    # S3 does not check sizes. A part of another size does not count as stored.
    return {shard: stored for shard, stored in found.items() if stored.size == shard_size(manifest, shard)}
