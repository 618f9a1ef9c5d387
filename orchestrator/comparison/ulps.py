"""Differences of two global models: the number of values that differ, and by how many units in the last place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lambdas.protocol.safetensors import Header, header_length, parse_header
from lambdas.protocol.tensor_table import ITEMSIZE
from orchestrator.errors import BadInput

_VALUES = 4 * 1024**2


@dataclass(frozen=True)
class Difference:
    """The differences of two models.

    Attributes:
        differing: values, of `elements`, that differ.
        max_ulps: the largest difference in units in the last place; of integers, the difference itself.
    """

    elements: int
    differing: int
    max_ulps: int


def compare_models(first: Path, second: Path) -> Difference:
    """Compare two safetensors files with the same tensor table, value by value, piece by piece.

    Raises:
        BadInput: their tensor tables differ.
    """
    one, other = read_header(first), read_header(second)
    if one.table != other.table:
        raise BadInput(f"{first} and {second} hold different tensors and cannot be compared.")
    differing = most = 0
    with first.open("rb") as a, second.open("rb") as b:
        a.seek(one.data_offset)
        b.seek(other.data_offset)
        for tensor in one.table.tensors:
            size = ITEMSIZE[tensor.dtype]
            for start in range(0, tensor.elements, _VALUES):
                count = min(_VALUES, tensor.elements - start)
                steps = ulps(a.read(count * size), b.read(count * size), tensor.dtype)
                differing += int(np.count_nonzero(steps))
                most = max(most, int(steps.max(initial=0)))
    return Difference(one.table.elements, differing, most)


def ulps(first: bytes, second: bytes, dtype: str) -> np.ndarray[Any, Any]:
    """The steps between the values of each pair, in representable values of a safetensors dtype: uint64, shape (n,)."""
    size = ITEMSIZE[dtype]
    kind = "u" if dtype[0] in "UBF" else "i"
    x, y = (np.frombuffer(raw, dtype=f"<{kind}{size}") for raw in (first, second))
    if dtype[0] == "F" or dtype == "BF16":
        x, y = _ordered(x, size), _ordered(y, size)
    low, high = np.minimum(x, y), np.maximum(x, y)
    result: np.ndarray[Any, Any] = high.astype(np.uint64) - low.astype(np.uint64)
    return result


def _ordered(bits: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """The bits of floating-point numbers as unsigned integers of the same order; both zeros are equal."""
    top = np.uint64(1) << np.uint64(8 * size - 1)
    wide = bits.astype(np.uint64)
    negative = (wide & top) != 0
    result: np.ndarray[Any, Any] = np.where(negative, top - (wide & (top - np.uint64(1))), wide + top)
    return result


def read_header(path: Path) -> Header:
    """The header of a safetensors file; raises InvalidTensorFile."""
    size = path.stat().st_size
    with path.open("rb") as file:
        return parse_header(file.read(header_length(file.read(8), size)), size)
