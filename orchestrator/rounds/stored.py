"""The shards that S3 holds. They show the progress of a round, also when messages were lost."""

from __future__ import annotations

from botocore.exceptions import ClientError

from lambdas.protocol.keys import shards_prefix
from lambdas.protocol.manifest import RoundManifest
from lambdas.storage.bucket import Bucket
from lambdas.storage.shards import Written, from_s3_checksum, shard_size
from orchestrator.aws.s3 import error_code, exists, list_objects, list_parts


def stored_shards(bucket: Bucket, manifest: RoundManifest) -> dict[int, Written] | None:
    """The shards that S3 holds completely; None where the global model is published or the upload was aborted.

    The SHA-256 is known for parts only.
    """
    output = manifest.output
    if output.upload_id is not None:
        try:
            parts = list_parts(bucket, output.key, output.upload_id)
        except ClientError as error:
            if error_code(error) == "NoSuchUpload":
                return None
            raise
        found = {
            number - 1: Written(part["ETag"], from_s3_checksum(part.get("ChecksumSHA256")), part["Size"])
            for number, part in parts.items()
        }
    else:
        objects = {item["Key"]: item for item in list_objects(bucket, shards_prefix(manifest.round_id))}
        keys = {shard: manifest.shard_key(shard) for shard in range(manifest.shards)}
        found = {
            shard: Written(objects[key]["ETag"], None, objects[key]["Size"])
            for shard, key in keys.items()
            if key in objects
        }
        # Publishing deletes the shard objects.
        if len(found) < manifest.shards and exists(bucket, output.key):
            return None
    # S3 does not check sizes. A part of another size does not count as stored.
    return {shard: stored for shard, stored in found.items() if stored.nbytes == shard_size(manifest, shard)}
