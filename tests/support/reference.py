"""The weighted mean, value by value, in Python's own integers and exact fractions: no numpy, no struct for floats.

It shares no code with the implementation that it is compared with.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lambdas.protocol.tensor_table import ITEMSIZE, TensorTable
from tests.support.manifests import Update


@dataclass(frozen=True)
class _Format:
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
    "F64": _Format(53, -1022, 8),
    "F32": _Format(24, -126, 4),
    "F16": _Format(11, -14, 2),
    "BF16": _Format(8, -126, 2),
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


def weighted_mean(table: TensorTable, layouts: Sequence[Sequence[str]], updates: Sequence[Update]) -> bytes:
    """The data section of the global model.

    Sums weight times value in float64, in the order of the updates, divides once by the sum of the weights, and
    rounds once to the tensor's dtype.
    """
    total = sum(update.num_examples for update in updates)
    result = b""
    for index, tensor in enumerate(table.tensors):
        sums = [0.0] * tensor.elements
        for update in updates:
            stored = table.with_dtypes(layouts[update.layout])
            raw = update.data[stored.first_byte[index] : stored.first_byte[index + 1]]
            values = decode(raw, stored.tensors[index].dtype)
            sums = [s + float(update.num_examples) * x for s, x in zip(sums, values, strict=True)]
        result += encode([s / total for s in sums], tensor.dtype)
    return result
