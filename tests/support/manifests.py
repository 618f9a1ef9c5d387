"""Rounds without storage: updates, their manifest, and streams over the updates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from lambdas.averaging.mean import average_shard
from lambdas.averaging.pacing import Pacing
from lambdas.protocol.keys import global_key, update_key
from lambdas.protocol.manifest import Output, Participant, RoundManifest
from lambdas.protocol.tensor_table import TensorSpec, TensorTable, shard_bounds
from tests.support.objects import etag_of

ROUND, MODEL, BUCKET = "r-0001", "demo", "bucket"


@dataclass(frozen=True)
class Update:
    """The update of a client. `data`: its data section; `layout`: the index of its layout in the manifest."""

    data: bytes
    num_examples: int = 1
    layout: int = 0
    header: bytes = b"H" * 16

    @property
    def body(self) -> bytes:
        return self.header + self.data

    @property
    def etag(self) -> str:
        return etag_of(self.body)


def client_name(index: int) -> str:
    return f"c-{index:05d}"


def table_of(*specs: tuple[str, int]) -> TensorTable:
    """Tensors t0, t1, ... of the given (dtype, length)."""
    return TensorTable(tuple(TensorSpec(f"t{i}", dtype, (length,)) for i, (dtype, length) in enumerate(specs)))


def manifest_of(
    table: TensorTable,
    updates: Sequence[Update],
    *,
    shards: int = 1,
    layouts: Sequence[Sequence[str]] | None = None,
    output: Output | None = None,
) -> RoundManifest:
    """The manifest of a round with these updates, written and parsed again."""
    manifest = RoundManifest(
        round_id=ROUND,
        model=MODEL,
        participants=tuple(
            Participant(
                client=client_name(i),
                key=update_key(ROUND, client_name(i)),
                etag=update.etag,
                size=len(update.body),
                data_offset=len(update.header),
                num_examples=update.num_examples,
                header_sha256=hashlib.sha256(update.header).hexdigest(),
                layout=update.layout,
            )
            for i, update in enumerate(updates)
        ),
        table=table,
        layouts=tuple(map(tuple, layouts)) if layouts else (tuple(t.dtype for t in table.tensors),),
        bounds=shard_bounds(table, shards),
        output=output or Output("objects", global_key(MODEL, ROUND)),
        created_at=1.0,
    )
    return RoundManifest.from_bytes(manifest.to_bytes())


class MemoryStreams:
    """Opens streams over updates in memory, and counts them."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._data = {client_name(i): update.data for i, update in enumerate(updates)}
        self.opened = self.open = self.most_open = self.unread = 0

    def __call__(self, participant: Participant, start: int, stop: int) -> MemoryStream:
        self.opened += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return MemoryStream(self, self._data[participant.client][start:stop])


class MemoryStream:
    """The bytes of one range."""

    def __init__(self, streams: MemoryStreams, data: bytes) -> None:
        self._streams, self._left = streams, memoryview(data)
        self._closed = False

    def readinto(self, view: memoryview) -> None:
        assert len(view) <= len(self._left), "read past the end of the range"
        view[:] = self._left[: len(view)]
        self._left = self._left[len(view) :]

    def close(self) -> None:
        assert not self._closed, "closed twice"
        self._closed = True
        self._streams.open -= 1
        self._streams.unread += len(self._left)


def averaged(manifest: RoundManifest, streams: MemoryStreams, pacing: Pacing | None = None) -> bytes:
    """The shards of a round, averaged one after the other. Fails if a stream stays open or is not read to its end."""
    result = bytearray()
    for shard in range(manifest.shards):
        before = len(result)
        average_shard(manifest, shard, streams, result.extend, pacing or Pacing())
        assert len(result) - before == manifest.shard_nbytes(shard)
    assert (streams.open, streams.unread) == (0, 0)
    return bytes(result)
