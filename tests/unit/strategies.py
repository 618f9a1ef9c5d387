"""Hypothesis strategies for tensor tables and values, and the arithmetic spelled out in exact fractions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from lambdas.protocol.keys import global_key, update_key
from lambdas.protocol.manifest import Output, Participant, RoundManifest
from lambdas.protocol.tensor_table import ITEMSIZE, TensorSpec, TensorTable, shard_bounds

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


# --- numbers, bit by bit -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Float:
    """An IEEE 754 binary format: significant bits with the hidden one, and the smallest normal exponent."""

    precision: int
    min_exponent: int
    nbytes: int

    @property
    def exponent_mask(self) -> int:
        return (1 << (self.nbytes * 8 - self.precision)) - 1

    def decode(self, bits: int) -> float:
        mantissa = bits & ((1 << (self.precision - 1)) - 1)
        exponent = (bits >> (self.precision - 1)) & self.exponent_mask
        negative = bits >> (self.nbytes * 8 - 1)
        if exponent:
            mantissa |= 1 << (self.precision - 1)
        value = math.ldexp(mantissa, max(exponent, 1) - 1 + self.min_exponent - self.precision + 1)
        return -value if negative else value

    def encode(self, value: float) -> int:
        """Round to nearest, ties to even."""
        sign = int(math.copysign(1.0, value) < 0) << (self.nbytes * 8 - 1)
        exact = abs(Fraction(value))
        if exact == 0:
            return sign
        exponent = max(math.frexp(abs(value))[1] - 1, self.min_exponent)
        units = round(exact / Fraction(2) ** (exponent - self.precision + 1))  # Python rounds half to even
        if units == 1 << self.precision:
            units, exponent = units >> 1, exponent + 1
        if units < 1 << (self.precision - 1):
            return sign | units
        biased = exponent - self.min_exponent + 1
        if biased >= self.exponent_mask:
            return sign | self.exponent_mask << (self.precision - 1)
        return sign | biased << (self.precision - 1) | units & ((1 << (self.precision - 1)) - 1)


FLOATS = {
    "F64": _Float(53, -1022, 8),
    "F32": _Float(24, -126, 4),
    "F16": _Float(11, -14, 2),
    "BF16": _Float(8, -126, 2),
}
_INTEGERS = {
    "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U64": "<Q", "U32": "<I", "U16": "<H", "U8": "<B", "BOOL": "<B"
}  # fmt: skip


def decode(raw: bytes, dtype: str) -> list[float]:
    """Stored values as float64, one by one."""
    size = ITEMSIZE[dtype]
    items = [raw[i : i + size] for i in range(0, len(raw), size)]
    if dtype in FLOATS:
        return [FLOATS[dtype].decode(int.from_bytes(item, "little")) for item in items]
    return [float(struct.unpack(_INTEGERS[dtype], item)[0]) for item in items]


def encode(values: Sequence[float], dtype: str) -> bytes:
    """Float64 values rounded once to `dtype`."""
    if dtype in FLOATS:
        return b"".join(FLOATS[dtype].encode(value).to_bytes(ITEMSIZE[dtype], "little") for value in values)
    bits = ITEMSIZE[dtype] * 8
    low, high = (0, 1) if dtype == "BOOL" else (-(1 << bits - 1), (1 << bits - 1) - 1)
    if dtype[0] == "U":
        low, high = 0, (1 << bits) - 1
    return b"".join(struct.pack(_INTEGERS[dtype], min(max(round(value), low), high)) for value in values)


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


# --- whole rounds in memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryRound:
    """A round without storage: per client its layout, weight and data section."""

    table: TensorTable
    layouts: tuple[tuple[str, ...], ...]
    weights: tuple[int, ...]
    layout_of: tuple[int, ...]
    data: tuple[bytes, ...]

    def manifest(self, shards: int) -> RoundManifest:
        clients = [f"c{i:02d}" for i in range(len(self.weights))]
        return RoundManifest(
            round_id="r",
            model="m",
            participants=tuple(
                Participant(name, update_key("r", name), '"e"', 8 + len(data), 8, weight, "0" * 64, None, layout)
                for name, data, weight, layout in zip(clients, self.data, self.weights, self.layout_of, strict=True)
            ),
            table=self.table,
            layouts=self.layouts,
            bounds=shard_bounds(self.table, shards),
            output=Output("objects", global_key("m", "r")),
            created_at=0.0,
        )

    def expected(self) -> bytes:
        """The promise: sum in float64 in the order of the clients, divide, round once."""
        total = sum(self.weights)
        result = b""
        for index, tensor in enumerate(self.table.tensors):
            sums = [0.0] * tensor.elements
            for weight, layout, data in zip(self.weights, self.layout_of, self.data, strict=True):
                stored = self.table.with_dtypes(self.layouts[layout])
                raw = data[stored.first_byte[index] : stored.first_byte[index + 1]]
                sums = [
                    s + float(weight) * x for s, x in zip(sums, decode(raw, stored.tensors[index].dtype), strict=True)
                ]
            result += encode([s / total for s in sums], tensor.dtype)
        return result


@st.composite
def memory_rounds(draw: Callable[..., Any], *, max_tensors: int = 4, max_clients: int = 5) -> MemoryRound:
    """Rounds of any mixture of dtypes, layouts and weights."""
    table = draw(tables(max_tensors=max_tensors))
    layouts = tuple(draw(st.lists(layouts_of(table), min_size=1, max_size=3, unique=True)))
    clients = draw(st.integers(1, max_clients))
    weights = draw(st.lists(st.integers(1, 1000) | st.just(10**9), min_size=clients, max_size=clients))
    layout_of = draw(st.lists(st.integers(0, len(layouts) - 1), min_size=clients, max_size=clients))
    data = []
    for layout in layout_of:
        stored = table.with_dtypes(layouts[layout])
        data.append(b"".join(draw(stored_values(t.dtype, t.elements)) for t in stored.tensors))
    return MemoryRound(table, layouts, tuple(weights), tuple(layout_of), tuple(data))
