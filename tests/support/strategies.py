"""Hypothesis strategies: tensor tables, stored values, and rounds in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from lambdas.averaging.pacing import Pacing
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.tensor_table import ITEMSIZE, TensorSpec, TensorTable
from tests.support import reference
from tests.support.manifests import Update, manifest_of
from tests.support.reference import FLOATS

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def tables(draw: Callable[..., Any], *, max_tensors: int = 8) -> TensorTable:
    """Tables of any mixture of dtypes, scalars and tensors without values among them; also the empty table."""
    rows = draw(st.lists(st.tuples(st.sampled_from(list(ITEMSIZE)), SHAPES), max_size=max_tensors))
    return TensorTable(tuple(TensorSpec(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(rows)))


def layouts_of(table: TensorTable) -> st.SearchStrategy[tuple[str, ...]]:
    """Ways to store a table: each float32 tensor as it is or in a wire dtype."""
    return st.tuples(
        *(st.sampled_from(["F32", "BF16", "F16"]) if t.dtype == "F32" else st.just(t.dtype) for t in table.tensors)
    )


def stored_values(dtype: str, count: int) -> st.SearchStrategy[bytes]:
    """`count` finite values of a dtype, as bytes, every other bit pattern among them."""
    size = ITEMSIZE[dtype]

    def finite(raw: bytes) -> bytes:
        if dtype == "BOOL":
            return bytes(byte & 1 for byte in raw)
        if dtype not in FLOATS:
            return raw
        form, result = FLOATS[dtype], b""
        for i in range(0, len(raw), size):
            bits = int.from_bytes(raw[i : i + size], "little")
            # Away from the largest exponents, so that float64's sums stay finite.
            limit = form.exponent_mask - (64 if dtype == "F64" else 1)
            exponent = min((bits >> (form.precision - 1)) & form.exponent_mask, limit)
            bits &= ~(form.exponent_mask << (form.precision - 1))
            result += (bits | exponent << (form.precision - 1)).to_bytes(size, "little")
        return result

    return st.binary(min_size=count * size, max_size=count * size).map(finite)


@dataclass(frozen=True)
class MemoryRound:
    """A round without storage: its tensors, their layouts, and one update per client."""

    table: TensorTable
    layouts: tuple[tuple[str, ...], ...]
    updates: tuple[Update, ...]

    def manifest(self, shards: int) -> RoundManifest:
        return manifest_of(self.table, self.updates, shards=shards, layouts=self.layouts)

    def expected(self) -> bytes:
        """The data section of the global model, by the reference."""
        return reference.weighted_mean(self.table, self.layouts, self.updates)


@st.composite
def memory_rounds(draw: Callable[..., Any], *, max_tensors: int = 4, max_clients: int = 6) -> MemoryRound:
    """Rounds of any mixture of dtypes, layouts and weights."""
    table = draw(tables(max_tensors=max_tensors))
    layouts = tuple(draw(st.lists(layouts_of(table), min_size=1, max_size=3, unique=True)))
    updates = []
    for _ in range(draw(st.integers(1, max_clients))):
        layout = draw(st.integers(0, len(layouts) - 1))
        stored = table.with_dtypes(layouts[layout])
        data = b"".join(draw(stored_values(tensor.dtype, tensor.elements)) for tensor in stored.tensors)
        updates.append(Update(data, draw(st.integers(1, 3) | st.integers(1, 10**9)), layout))
    return MemoryRound(table, layouts, tuple(updates))


# How a worker may cut a shard into pieces and reads, each of them smaller than in production.
PACINGS = st.builds(
    Pacing,
    max_streams=st.sampled_from([1, 2, 64]),
    piece_elements=st.integers(1, 20),
    window_elements=st.integers(1, 20),
    read_bytes=st.integers(8, 40),
)
