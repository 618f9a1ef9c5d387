"""From pinned updates to queued jobs: the lane, the shard table, the output, the manifest, the messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lambdas.protocol.keys import global_key, manifest_key
from lambdas.protocol.limits import MAX_PART_BYTES, MIN_PART_BYTES
from lambdas.protocol.manifest import Output, RoundManifest
from lambdas.protocol.safetensors import global_header
from lambdas.protocol.tensor_table import TensorTable, shard_bounds
from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import create_object, read_object
from orchestrator.errors import BadInput, RoundFailed
from orchestrator.rounds.norms import MOST_IN_MESSAGES
from orchestrator.rounds.pin import Pinned
from orchestrator.rounds.request import RoundRecord

if TYPE_CHECKING:
    pass


def sink_for(table: TensorTable, bounds: Sequence[int]) -> str:
    """`multipart` where every shard can be a part of one upload, else `objects` (S3's limits on part sizes).

    Raises:
        BadInput: a shard is larger than a part can be.
    """
    sizes = [table.byte_at(stop) - table.byte_at(start) for start, stop in itertools.pairwise(bounds)]
    sizes[0] += len(global_header(table))
    if max(sizes) > MAX_PART_BYTES:
        needed = -(-table.nbytes // MAX_PART_BYTES) + 1
        raise BadInput(
            f"{len(sizes)} shards of a model of {table.nbytes} bytes are larger than S3's largest part "
            f"({MAX_PART_BYTES} bytes). Use --shards {needed} or more."
        )
    return "multipart" if all(size >= MIN_PART_BYTES for size in sizes[:-1]) and sizes[-1] > 0 else "objects"


def freeze_round(
    bucket: Bucket,
    record: RoundRecord,
    pinned: Pinned,
    shards: int,
    topology: str = GRADS_SHARDING,
) -> RoundManifest:
    """Write the manifest, once. Where another orchestrator was faster, its manifest is the round's.

    Args:
        shards: M; 1 for a tree.

    Raises:
        BadInput: the shard count does not suit the model.
    """
    bounds = shard_bounds(pinned.table, shards)
    output = create_output(
        bucket, sink_for(pinned.table, bounds), global_key(record.model, record.round_id)
    )  # fmt: skip
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
        topology=topology,
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
            f"Round {record.round_id}: its manifest was written and deleted by someone else. Start again."
        )
    return found


def create_output(bucket: Bucket, kind: str, key: str) -> Output:
    """Where averaged shards go: with `multipart`, a new upload to `key`."""
    if kind != "multipart":
        return Output(kind, key)
    # Workers send the SHA-256 of what they averaged; S3 compares each part, and ListParts gives it back.
    upload = bucket.s3.create_multipart_upload(
        Bucket=bucket.name, Key=key, ContentType="application/octet-stream", ChecksumAlgorithm="SHA256"
    )
    return Output(kind, key, upload["UploadId"])


def read_manifest(bucket: Bucket, round_id: str) -> RoundManifest | None:
    """The round's manifest, None before the round is pinned."""
    found = read_object(bucket, manifest_key(round_id))
    return RoundManifest.from_bytes(found[0]) if found else None
