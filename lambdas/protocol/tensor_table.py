"""The tensor table of a model: names, dtypes and shapes, and the shard bounds that divide its values."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lambdas.protocol.documents import canonical_json, sha256_hex
from lambdas.protocol.errors import InvalidContract, shown
from lambdas.protocol.fields import is_size, is_text
from lambdas.protocol.limits import MAX_DIMENSIONS, MAX_INT, MAX_SHARDS, MAX_TENSOR_NAME, MAX_TENSORS

# The dtypes that can be averaged, by their safetensors names, with their size in bytes.
ITEMSIZE: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
# The dtypes in which an update may store a float32 tensor, to send fewer bytes.
WIRE_DTYPES = ("BF16", "F16")


@dataclass(frozen=True)
class TensorSpec:
    """One row of a tensor table: `name`, safetensors `dtype` and `shape`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorTable:
    """Tensors in the order of their values in the data section, which has no gaps.

    Values are addressed by their flat index over the whole table, 0 <= index < `elements`. Byte offsets count from
    the start of the data section.
    """

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def first_element(self) -> list[int]:
        """Flat index at which each tensor starts; one more entry for the end."""
        return [0, *itertools.accumulate(t.elements for t in self.tensors)]

    @cached_property
    def first_byte(self) -> list[int]:
        """Byte offset at which each tensor starts; one more entry for the end."""
        return [0, *itertools.accumulate(t.elements * ITEMSIZE[t.dtype] for t in self.tensors)]

    @property
    def elements(self) -> int:
        """Number of values in all tensors."""
        return self.first_element[-1]

    @property
    def nbytes(self) -> int:
        """Length of the data section in bytes."""
        return self.first_byte[-1]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the table's canonical JSON; equal tables have equal digests."""
        return sha256_hex(canonical_json(self.to_json()))

    def tensor_at(self, element: int) -> int:
        """Index of the tensor that contains flat index `element`; an empty tensor contains none."""
        return bisect.bisect_right(self.first_element, element, hi=len(self.tensors)) - 1

    def byte_at(self, element: int) -> int:
        """Byte offset of flat index `element`; `elements` itself maps to the end of the data section."""
        if element == self.elements:
            return self.nbytes
        index = self.tensor_at(element)
        return self.first_byte[index] + (element - self.first_element[index]) * ITEMSIZE[self.tensors[index].dtype]

    def with_dtypes(self, dtypes: Sequence[str]) -> TensorTable:
        """The same tensors with other dtypes, such as those of an update's layout."""
        return TensorTable(tuple(TensorSpec(t.name, d, t.shape) for t, d in zip(self.tensors, dtypes, strict=True)))

    def to_json(self) -> list[object]:
        """Rows [name, dtype, shape], as documents store the table."""
        return [[t.name, t.dtype, list(t.shape)] for t in self.tensors]

    @classmethod
    def from_json(cls, what: str, rows: Sequence[Any]) -> TensorTable:
        """Parse and check the rows of a document; `what` names the document in an InvalidContract."""
        if len(rows) > MAX_TENSORS:
            raise InvalidContract(f"{what}: {len(rows)} tensors; at most {MAX_TENSORS} are averaged.")
        tensors = []
        for i, row in enumerate(rows):
            if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[2], list)):
                raise InvalidContract(f"{what}: tensors[{i}]: expected [name, dtype, shape], found {shown(row)}.")
            name, dtype, shape = row
            if not is_text(name) or len(name) > MAX_TENSOR_NAME:
                raise InvalidContract(
                    f"{what}: tensor {shown(name)}: its name is not Unicode text of up to {MAX_TENSOR_NAME} characters."
                )
            if not isinstance(dtype, str) or dtype not in ITEMSIZE:
                raise InvalidContract(f"{what}: tensor {shown(name)}: dtype {shown(dtype)} is not averaged.")
            if len(shape) > MAX_DIMENSIONS or not all(is_size(d) for d in shape):
                raise InvalidContract(f"{what}: tensor {shown(name)}: shape {shown(shape)} has an invalid dimension.")
            tensors.append(TensorSpec(name, dtype, tuple(shape)))
        if len({t.name for t in tensors}) != len(tensors):
            raise InvalidContract(f"{what}: two tensors have the same name.")
        table = cls(tuple(tensors))
        if table.nbytes > MAX_INT:
            raise InvalidContract(f"{what}: the tensors have {table.nbytes} bytes, more than an object can have.")
        return table


def shard_bounds(table: TensorTable, shards: int) -> tuple[int, ...]:
    """Divide a table into `shards` shards of nearly equal bytes, on element boundaries.

    Returns:
        shards + 1 ascending flat indices; shard m contains the values bounds[m] <= index < bounds[m + 1]. The shards
        cover every value exactly once. With fewer values than shards, some shards are empty.

    Raises:
        InvalidContract: the shard count is out of range.
    """
    if not 1 <= shards <= MAX_SHARDS:
        raise InvalidContract(f"Dividing a model into {shards} shards: expected 1 to {MAX_SHARDS}.")
    bounds = []
    for m in range(shards):
        byte = table.nbytes * m // shards
        index = bisect.bisect_right(table.first_byte, byte, hi=len(table.tensors)) - 1
        if index < 0:  # a table without tensors
            bounds.append(0)
            continue
        within = (byte - table.first_byte[index]) // ITEMSIZE[table.tensors[index].dtype]
        bounds.append(min(table.first_element[index] + within, table.first_element[index + 1]))
    return (*bounds, table.elements)
