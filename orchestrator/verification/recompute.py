"""Recomputes shards on this machine and compares them with the published bytes, piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from lambdas.averaging.mean import Float64, OpenStream, Stream, average_shard, from_float64, to_float64
from lambdas.averaging.pacing import Pacing
from lambdas.protocol.manifest import Participant, RoundManifest
from lambdas.protocol.safetensors import Run, runs
from lambdas.protocol.tensor_table import ITEMSIZE
from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.protocol.tree import Tree, tree_of
from lambdas.storage.shards import head_of_shard
from lambdas.storage.updates import UpdateReader
from orchestrator.rounds.publish import shard_region

_READ_BYTES = 1024**2


@dataclass(frozen=True)
class Published:
    """The stored global model: an object of `size` bytes."""

    key: str
    etag: str
    size: int

    def open(self, reader: UpdateReader, start: int, stop: int) -> Stream:
        """A stream of its bytes start <= b < stop."""
        whole = Participant("global-model", self.key, self.etag, self.size, 0, 1, "")
        return reader.open(whole, start, stop)


@dataclass(frozen=True)
class ShardCheck:
    """One shard, recomputed and published.

    Attributes:
        recomputed: SHA-256 of the recomputed shard; None if it was not recomputed.
        published: SHA-256 of its bytes in the global model; None if there is no global model to read.
        first_difference: index of the first value that differs between the two; None if they are equal.
    """

    shard: int
    recomputed: str | None
    published: str | None
    first_difference: int | None = None


class HashedData:
    """Opens streams of updates and hashes each client's data section while it is read.

    Reading all shards in ascending order reads every data section once, from its first byte to its last.
    """

    def __init__(self, open_stream: OpenStream) -> None:
        self._open = open_stream
        self._digests: dict[str, hashlib._Hash] = {}

    def open(self, participant: Participant, start: int, stop: int) -> Stream:
        """A stream of a range, whose bytes are hashed when they are read."""
        digest = self._digests.setdefault(participant.client, hashlib.sha256())
        return _HashedStream(self._open(participant, start, stop), digest)

    def sha256(self, client: str) -> str:
        """SHA-256 of the bytes of a client's data section that were read so far."""
        return self._digests.get(client, hashlib.sha256()).hexdigest()


@dataclass
class _HashedStream:
    _stream: Stream
    _digest: hashlib._Hash

    def readinto(self, view: memoryview) -> None:
        self._stream.readinto(view)
        self._digest.update(view)

    def close(self) -> None:
        self._stream.close()


def check_shard(
    reader: UpdateReader,
    manifest: RoundManifest,
    shard: int,
    open_update: OpenStream | None,
    published: Published | None,
    whole: hashlib._Hash,
) -> ShardCheck:
    """Recompute one shard and hash it together with its region of the global model.

    Args:
        open_update: None: do not recompute, hash the region only.
        published: None: there is no global model to compare with.
        whole: a hash that gets the bytes of the region, too.

    Raises:
        NonFiniteUpdate: an update has NaN or Inf. Errors of the streams are passed on.
    """
    start, stop = shard_region(manifest, shard)
    region = published.open(reader, start, stop) if published else None
    try:
        comparer = _Comparer(region, stop - start, whole)
        if open_update is None:
            comparer.read_on()
            return ShardCheck(shard, None, comparer.published)
        comparer.write(memoryview(head_of_shard(manifest, shard)))
        # In the order of additions of the round's topology.
        if manifest.topology == GRADS_SHARDING:
            average_shard(manifest, shard, open_update, comparer.write, Pacing())
        else:
            average_by_tree(manifest, open_update, comparer.write)
        differs = None
        if comparer.differs_at is not None:
            differs = _element_at(manifest, start + comparer.differs_at)
        return ShardCheck(shard, comparer.recomputed, comparer.published, differs)
    finally:
        if region is not None:
            region.close()


def average_by_tree(
    manifest: RoundManifest,
    open_update: OpenStream,
    write: Callable[[memoryview], object],
    values: int = 512 * 1024,
) -> None:
    """Average a model in the order of additions of the round's tree: float64 sums of sums, rounded once.

    The tree's aggregators hold complete models. Here, `values` values at a time pass through all levels.
    """
    tree = tree_of(manifest)
    for run in runs(manifest, 0, manifest.table.elements):
        for start in range(run.start, run.stop, values):
            piece = Run(start, min(run.stop, start + values), run.dtype, run.stored)
            sums = _tree_sums(manifest, tree, tree.root, 0, piece, open_update)
            with np.errstate(all="ignore"):
                np.divide(sums, float(manifest.total_examples), out=sums)
                write(from_float64(sums, piece.dtype).data)


def _tree_sums(
    manifest: RoundManifest, tree: Tree, level: int, aggregator: int, piece: Run, open_update: OpenStream
) -> Float64:
    """One aggregator's sums over a piece: float64, shape (piece.stop - piece.start,)."""
    sums: Float64 = np.zeros(piece.stop - piece.start, dtype=np.float64)
    inputs = tree.inputs(level, aggregator)
    if level > 0:
        for below in inputs:
            sums += _tree_sums(manifest, tree, level - 1, below, piece, open_update)
        return sums
    scratch = np.empty_like(sums)
    with ExitStack() as stack, np.errstate(all="ignore"):
        participants = [manifest.participants[i] for i in inputs]
        streams = []
        for p in participants:
            table = manifest.layout_tables[p.layout]
            streams.append(open_update(p, table.byte_at(piece.start), table.byte_at(piece.stop)))
            stack.callback(streams[-1].close)
        for p, stream in zip(participants, streams, strict=True):
            dtype = piece.stored[p.layout]
            raw = memoryview(bytearray(len(sums) * ITEMSIZE[dtype]))
            stream.readinto(raw)
            to_float64(raw, dtype, scratch)
            np.multiply(scratch, float(p.num_examples), out=scratch)
            sums += scratch
    return sums


def _element_at(manifest: RoundManifest, file_byte: int) -> int:
    """Flat index of the value to which a byte of the global model's file belongs; 0 for a byte of the header."""
    first = shard_region(manifest, 0)[1] - manifest.table.byte_at(manifest.bounds[1])
    table, byte = manifest.table, max(0, file_byte - first)
    index = max(i for i, begin in enumerate(table.first_byte[:-1]) if begin <= byte and table.tensors[i].elements)
    within = byte - table.first_byte[index]
    return table.first_element[index] + within // ITEMSIZE[table.tensors[index].dtype]


class _Comparer:
    """Takes recomputed bytes in order, reads the same number of published bytes, and compares them."""

    def __init__(self, region: Stream | None, nbytes: int, whole: hashlib._Hash) -> None:
        self._region = region
        self._whole = whole
        self._left = nbytes
        self._position = 0
        self._recomputed, self._published = hashlib.sha256(), hashlib.sha256()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self.differs_at: int | None = None

    @property
    def recomputed(self) -> str:
        return self._recomputed.hexdigest()

    @property
    def published(self) -> str | None:
        return self._published.hexdigest() if self._region is not None else None

    def write(self, piece: memoryview) -> None:
        piece = piece.cast("B")
        self._recomputed.update(piece)
        for at in range(0, len(piece) if self._region is not None else 0, _READ_BYTES):
            mine = piece[at : at + _READ_BYTES]
            theirs = self._read(len(mine))
            if self.differs_at is None and mine != theirs:
                self.differs_at = self._position + next(i for i in range(len(mine)) if mine[i] != theirs[i])
            self._position += len(mine)

    def read_on(self) -> None:
        while self._left and self._region is not None:
            self._read(min(self._left, _READ_BYTES))

    def _read(self, count: int) -> memoryview:
        assert self._region is not None
        view = self._buffer[:count]
        self._region.readinto(view)
        self._published.update(view)
        self._whole.update(view)
        self._left -= count
        return view
