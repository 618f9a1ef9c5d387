"""The manifest of a round: what it says about shards and output, and how it is written once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from lambdas.protocol.keys import global_key, manifest_key
from lambdas.protocol.limits import MAX_PART_BYTES, MIN_PART_BYTES
from lambdas.protocol.manifest import Output, RoundManifest
from lambdas.protocol.safetensors import global_header
from lambdas.protocol.tensor_table import TensorTable, shard_bounds
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import create_object, read_object
from orchestrator.errors import BadInput, RoundFailed
from orchestrator.rounds.norms import MOST_IN_MESSAGES
from orchestrator.rounds.pin import Pinned
from orchestrator.rounds.request import RoundRecord


def sink_for(table: TensorTable, bounds: Sequence[int]) -> str:
    """How shards are stored: `multipart` where each can be a part of one upload, else `objects` (S3's part sizes).

    Raises:
        BadInput: a shard is larger than S3's largest part.
    """
    sizes = [table.byte_at(stop) - table.byte_at(start) for start, stop in itertools.pairwise(bounds)]
    sizes[0] += len(global_header(table))
    if max(sizes) > MAX_PART_BYTES:
        needed = -(-table.nbytes // MAX_PART_BYTES) + 1
        raise BadInput(
            f"With {len(sizes)} shards of a model of {table.nbytes} bytes, a shard is larger than S3's largest part "
            f"({MAX_PART_BYTES} bytes). Use --shards {needed} or more."
        )
    return "multipart" if all(size >= MIN_PART_BYTES for size in sizes[:-1]) and sizes[-1] > 0 else "objects"


def freeze_round(bucket: Bucket, record: RoundRecord, pinned: Pinned, shards: int) -> RoundManifest:
    """Write the manifest once. Where another coordinator has written one already, return that one.

    Raises:
        BadInput: the shard count does not suit the model.
    """
    bounds = shard_bounds(pinned.table, shards)
    output = create_output(bucket, sink_for(pinned.table, bounds), global_key(record.model, record.round_id))
    in_objects = record.request.max_norm is not None or len(pinned.participants) > MOST_IN_MESSAGES
    manifest = RoundManifest(
        round_id=record.round_id,
        model=record.model,
        participants=pinned.participants,
        table=pinned.table,
        layouts=pinned.layouts,
        bounds=bounds,
        output=output,
        created_at=time.time(),
        topology=record.request.topology,
        excluded=pinned.excluded,
        norms="objects" if in_objects else "results",
    )
    if create_object(bucket, manifest_key(record.round_id), manifest.to_bytes()):
        return manifest
    if output.upload_id is not None:
        bucket.s3.abort_multipart_upload(Bucket=bucket.name, Key=output.key, UploadId=output.upload_id)
    found = read_manifest(bucket, record.round_id)
    if found is None:
        raise RoundFailed(
            f"Round {record.round_id}: another process has written its manifest and deleted it. Start the round again."
        )
    return found


def create_output(bucket: Bucket, kind: str, key: str) -> Output:
    """The place of the averaged shards. For `multipart` this creates an upload to `key`."""
    if kind != "multipart":
        return Output(kind, key)
    # Workers send the SHA-256 of each part. S3 compares it with the part, and ListParts returns it.
    upload = bucket.s3.create_multipart_upload(
        Bucket=bucket.name, Key=key, ContentType="application/octet-stream", ChecksumAlgorithm="SHA256"
    )
    return Output(kind, key, upload["UploadId"])


def read_manifest(bucket: Bucket, round_id: str) -> RoundManifest | None:
    """The round's manifest; None before the round is pinned."""
    found = read_object(bucket, manifest_key(round_id))
    return RoundManifest.from_bytes(found[0]) if found else None
