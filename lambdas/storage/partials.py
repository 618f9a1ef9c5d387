"""Partial sums, as a tree's aggregators hand them on: their bytes, in S3 or in this machine's shared memory.

A partial sum is a safetensors file: the model's tensors as float64 sums of weight * x, in the model's order, and in its
`__metadata__` whose sum it is and the total `weight`. Means of means over groups of different sizes would be wrong, and
float32 sums would be rounded once per level. Everything in front of the sums follows from manifest and place in the
tree, so equal sums are equal files, whoever makes them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from botocore.exceptions import BotoCoreError, ClientError

from lambdas.averaging.mean import Float64, Stream
from lambdas.protocol.errors import PartialsMissing, StorageUnavailable
from lambdas.protocol.keys import partial_key
from lambdas.protocol.manifest import Participant, RoundManifest
from lambdas.protocol.messages import AggregatorJob, Partial
from lambdas.protocol.safetensors import serialize_header
from lambdas.protocol.tensor_table import TensorTable
from lambdas.protocol.tree import tree_of
from lambdas.storage.bucket import Bucket
from lambdas.storage.shards import Written, from_s3_checksum, to_s3_checksum

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Place:
    """One aggregator of a round's tree.

    Attributes:
        digest: the manifest's SHA-256.
    """

    manifest: RoundManifest
    digest: str
    level: int
    aggregator: int

    @classmethod
    def of(cls, manifest: RoundManifest, job: AggregatorJob) -> Place:
        """Where a job belongs; InvalidContract where the manifest's tree has no such place."""
        job.check(manifest)
        return cls(manifest, job.manifest_sha256, job.level, job.aggregator)

    @property
    def is_root(self) -> bool:
        """Whether its result is the global model."""
        return self.level == tree_of(self.manifest).root

    @property
    def key(self) -> str:
        """Key of its partial sum."""
        return partial_key(self.manifest.round_id, self.digest, self.level, self.aggregator)

    @property
    def segment(self) -> str:
        """Name of its partial sum in shared memory."""
        return f"{self.digest[:16]}-{self.level}-{self.aggregator}"

    @property
    def header(self) -> bytes:
        """The bytes in front of its sums."""
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
        """Bytes of its partial sum, header included."""
        return len(self.header) + 8 * self.manifest.table.elements

    def inputs(self, pins: tuple[Partial, ...]) -> RoundManifest:
        """What it adds up, as `average.add_up` takes it: updates with their weights, or sums of the level below."""
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
    """Named blocks of bytes that every worker process of this machine can map; orchestrator/shared_memory.py."""

    def find(self, name: str) -> memoryview | None:
        """A block's bytes, None where there is none."""

    def create(self, name: str, nbytes: int, round_id: str) -> memoryview | None:
        """A new block of zeros, None where this machine has no room for it.

        Raises:
            StorageUnavailable: it exists: another process is at work on it.
        """

    def drop(self, name: str) -> None:
        """Give up a block."""

    def full_name(self, name: str) -> str:
        """What tells a block from those of other machines."""


def whole_block(shared: SharedBlocks, place: Place) -> memoryview | None:
    """A finished partial sum in shared memory, header included; None where there is none, or half of one.

    The header is written last, so a block whose header is right is complete.
    """
    block = shared.find(place.segment)
    header = place.header
    # A system may round a block's size up to whole pages.
    return block[: place.nbytes] if block is not None and bytes(block[: len(header)]) == header else None


def zeros(nbytes: int) -> memoryview:
    """Zeroed bytes; the system hands them out page by page, as they are used."""
    return np.zeros(nbytes, dtype=np.uint8).data


def as_float64(block: memoryview, offset: int) -> Float64:
    """The sums behind a header."""
    return np.frombuffer(block, dtype="<f8", offset=offset)


class BlockStream(Stream):
    """Bytes of a block, in order."""

    def __init__(self, block: memoryview) -> None:
        self._left = block

    def readinto(self, view: memoryview) -> None:
        view[:] = self._left[: len(view)]
        self._left = self._left[len(view) :]

    def close(self) -> None:
        self._left = memoryview(b"")


# --- S3 ------------------------------------------------------------------------------------------------------------


def store_partial(bucket: Bucket, place: Place, block: memoryview) -> Written:
    """Store a partial sum, once: where it is there already, the one that is there stays, and has the same bytes.

    Raises:
        StorageUnavailable: boto3's retries are used up.
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
    """A partial sum that is stored with the expected length; None where it is not.

    Raises:
        StorageUnavailable: boto3's retries are used up.
    """
    expected = place.nbytes
    try:
        head = bucket.s3.head_object(Bucket=bucket.name, Key=place.key, ChecksumMode="ENABLED")
    except (ClientError, BotoCoreError) as error:
        if isinstance(error, ClientError) and error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise StorageUnavailable(f"Looking for {place.key}: {error}") from error
    if head["ContentLength"] != expected:
        return None
    return Written(head["ETag"], from_s3_checksum(head.get("ChecksumSHA256")), expected)


class _BlockFile(io.RawIOBase):
    """A block as a file that boto3 can read, and read again when it retries, without a copy of the whole."""

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
    """How an aggregator above the leaves opens its inputs: pinned objects from S3, blocks from shared memory.

    Raises:
        PartialsMissing: a block is on another machine, or gone.
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
        return BlockStream(block[participant.data_offset + start : participant.data_offset + stop])

    return open_stream
