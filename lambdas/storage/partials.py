"""Partial sums, which a tree's aggregators pass to the level above, in S3 or in this machine's shared memory.

A partial sum is a safetensors file with the model's tensors as float64 sums of weight * x, in the model's order. Its
`__metadata__` names the aggregator and the total `weight`. Means of groups of different sizes could not be averaged
correctly, and float32 sums would be rounded once per level. The header follows from the manifest and the place in the
tree, so every worker that makes the same partial sum writes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
from botocore.exceptions import BotoCoreError, ClientError

from lambdas.averaging.mean import Float64, Stream
from lambdas.protocol.errors import PartialsMissing, StorageUnavailable
from lambdas.protocol.keys import partial_key
from lambdas.protocol.manifest import Participant, RoundManifest
from lambdas.protocol.messages import Partial
from lambdas.protocol.safetensors import serialize_header
from lambdas.protocol.tensor_table import TensorTable
from lambdas.protocol.tree import tree_of
from lambdas.storage.bucket import Bucket
from lambdas.storage.shards import Written, find_object, to_s3_checksum


@dataclass(frozen=True)
class Place:
    """One aggregator of a round's tree. `digest` is the manifest's SHA-256."""

    manifest: RoundManifest
    digest: str
    level: int
    aggregator: int

    @property
    def is_root(self) -> bool:
        """Whether the aggregator's result is the global model."""
        return self.level == tree_of(self.manifest).root

    @property
    def key(self) -> str:
        """Key of the partial sum."""
        return partial_key(self.manifest.round_id, self.digest, self.level, self.aggregator)

    @property
    def segment(self) -> str:
        """Name of the partial sum in shared memory."""
        return f"{self.digest[:16]}-{self.level}-{self.aggregator}"

    @property
    def header(self) -> bytes:
        """The bytes in front of the sums."""
        group = tree_of(self.manifest).participants(self.level, self.aggregator)
        weight = sum(p.num_examples for p in self.manifest.participants[group.start : group.stop])
        return serialize_header(
            sums_table(self.manifest.table),
            {
                "aggregator": str(self.aggregator),
                "level": str(self.level),
                "manifest_sha256": self.digest,
                "round": self.manifest.round_id,
                "weight": str(weight),
            },
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the partial sum, including the header."""
        return len(self.header) + 8 * self.manifest.table.elements

    def inputs(self, pins: tuple[Partial, ...]) -> RoundManifest:
        """The aggregator's inputs in the form that `mean.add_up` takes: updates, or partial sums with weight 1.

        Args:
            pins: where the partial sums of the level below are; empty on level 0.
        """
        manifest, group = self.manifest, tree_of(self.manifest).inputs(self.level, self.aggregator)
        if self.level == 0:
            return replace(manifest, participants=manifest.participants[group.start : group.stop])
        table = sums_table(manifest.table)
        below = [replace(self, level=self.level - 1, aggregator=index) for index in group]
        return replace(
            manifest,
            table=table,
            layouts=(tuple(t.dtype for t in table.tensors),),
            participants=tuple(
                Participant(
                    client=str(place.aggregator),
                    key=place.key,
                    etag=pin.etag or "",
                    size=len(header) + table.nbytes,
                    data_offset=len(header),
                    num_examples=1,
                    header_sha256="",
                )
                for place, pin in zip(below, pins, strict=True)
                for header in (place.header,)
            ),
        )


def sums_table(table: TensorTable) -> TensorTable:
    """The model's tensors as float64."""
    return table.with_dtypes(["F64"] * len(table.tensors))


# --- where sums are while they are added up ------------------------------------------------------------------------


class SharedBlocks(Protocol):
    """Named blocks of bytes that the worker processes of one machine share (orchestrator/workers/shared_memory.py)."""

    def find(self, name: str) -> memoryview | None:
        """A block's bytes; None if it does not exist."""

    def create(self, name: str, nbytes: int, round_id: str) -> memoryview | None:
        """A new block of zeros; None if this machine has not enough memory.

        Raises:
            StorageUnavailable: the block exists, so another process is writing it.
        """

    def drop(self, name: str) -> None:
        """Delete a block."""

    def full_name(self, name: str) -> str:
        """The block's name, unique among all machines."""


def whole_block(shared: SharedBlocks, place: Place) -> memoryview | None:
    """A complete partial sum in shared memory, including the header; None if there is none.

    The header is written last, so a block with the right header is complete.
    """
    block = shared.find(place.segment)
    header = place.header
    # The operating system may round a block's size up to whole pages.
    return block[: place.nbytes] if block is not None and bytes(block[: len(header)]) == header else None


def zeros(nbytes: int) -> memoryview:
    """Zeroed bytes, which the operating system allocates page by page when they are used."""
    return np.zeros(nbytes, dtype=np.uint8).data


def as_float64(block: memoryview, offset: int) -> Float64:
    """The sums that follow a header of `offset` bytes, float64, shape (elements,)."""
    return np.frombuffer(block, dtype="<f8", offset=offset)


# --- S3 ------------------------------------------------------------------------------------------------------------


def store_partial(bucket: Bucket, place: Place, block: memoryview) -> Written:
    """Store a partial sum, unless it is stored already, with the same bytes.

    Raises:
        StorageUnavailable: all of boto3's retries failed.
    """
    sha256 = hashlib.sha256(block).hexdigest()
    try:
        etag = bucket.s3.put_object(
            Bucket=bucket.name,
            Key=place.key,
            Body=cast(Any, _BlockFile(block)),
            ContentLength=len(block),
            ChecksumSHA256=to_s3_checksum(sha256),
            IfNoneMatch="*",
        )["ETag"]
    except (ClientError, BotoCoreError) as error:
        if isinstance(error, ClientError) and error.response["Error"]["Code"] == "PreconditionFailed":
            found = find_partial(bucket, place)
            if found is not None:
                return replace(found, sha256=sha256)
        raise StorageUnavailable(f"Storing {place.key}: {error}") from error
    return Written(etag, sha256, len(block))


def find_partial(bucket: Bucket, place: Place) -> Written | None:
    """The partial sum, if it is stored already with the expected length, else None.

    Raises:
        StorageUnavailable: all of boto3's retries failed.
    """
    try:
        return find_object(bucket, place.key, place.nbytes)
    except (ClientError, BotoCoreError) as error:
        raise StorageUnavailable(f"Looking for {place.key}: {error}") from error


class _BlockFile(io.RawIOBase):
    """A block as a file, without a copy of it: boto3 reads it, again for a retry, and `add_up` reads it as a stream."""

    def __init__(self, block: memoryview) -> None:
        self._block, self._at = block, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), len(self._block) - self._at)
        buffer[:count] = self._block[self._at : self._at + count]
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._block)}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at


# --- inputs --------------------------------------------------------------------------------------------------------


def opener(
    place: Place,
    pins: tuple[Partial, ...],
    shared: SharedBlocks | None,
    from_s3: Callable[[Participant, int, int], Stream],
) -> Callable[[Participant, int, int], Stream]:
    """The function with which an aggregator above the leaves opens its inputs: from S3, or from shared memory.

    Raises:
        PartialsMissing: a block is on another machine or does not exist any more.
    """
    blocks: dict[str, memoryview] = {}
    missing: dict[int, str] = {}
    for index, pin in zip(tree_of(place.manifest).inputs(place.level, place.aggregator), pins, strict=True):
        below = replace(place, level=place.level - 1, aggregator=index)
        if pin.segment is None:
            continue
        here = shared is not None and shared.full_name(below.segment) == pin.segment
        block = whole_block(shared, below) if shared is not None and here else None
        if block is None:
            missing[index] = pin.segment
        else:
            blocks[str(index)] = block
    if missing:
        raise PartialsMissing(
            f"{len(missing)} partial sums of level {place.level - 1} are in the shared memory of another worker, or of "
            f"one that has ended ({next(iter(missing.values()))})",
            tuple(missing),
        )

    def open_stream(participant: Participant, start: int, stop: int) -> Stream:
        block = blocks.get(participant.client)
        if block is None:
            return from_s3(participant, start, stop)
        return _BlockFile(block[participant.data_offset + start : participant.data_offset + stop])

    return open_stream
