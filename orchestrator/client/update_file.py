"""The update file: tensors as one safetensors file, with the example count in its metadata."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np

from lambdas.averaging.mean import BLOCK, from_float64, to_float64
from lambdas.protocol.errors import InvalidUpdate
from lambdas.protocol.safetensors import (
    DATA_SHA256,
    MAX_HEADER_BYTES,
    NUM_EXAMPLES,
    ORIGINAL_DTYPES,
    canonical_order,
    check_num_examples,
    serialize_header,
)
from lambdas.protocol.tensor_table import ITEMSIZE, TensorSpec, TensorTable
from orchestrator.errors import BadInput

if TYPE_CHECKING:
    pass
from orchestrator.client.sources import Tensors


@dataclass(frozen=True)
class WrittenUpdate:
    """An update file: its length in bytes, all that stands in front of its data section, and that section's SHA-256."""

    nbytes: int
    header: bytes
    data_sha256: str


def write_update(
    tensors: Tensors, num_examples: int, out: IO[bytes], *, wire: str | None = None, size: int | None = None
) -> WrittenUpdate:
    """Write an update file. The values are hashed as they pass, and their digest goes into the header in front of them.

    Args:
        num_examples: the client's weight, 1 to 10**9.
        out: an empty file that can be written and sought.
        wire: `BF16` or `F16` to store float32 tensors in that dtype (rounded to nearest, ties to even).
        size: the file's length in bytes; spaces at the end of the header, which safetensors allows, make up for what is
            missing. None for as long as it takes.

    Raises:
        BadInput: an example count that makes no weight, a value that the wire dtype cannot hold, NaN and Inf among
            them, or an update that is larger than `size`.
    """
    try:
        check_num_examples(num_examples)
    except InvalidUpdate as error:
        raise BadInput(f"{error}. Pass the number of examples that the client trained on.") from error
    order = canonical_order(tensors.table)
    specs = TensorTable(tuple(tensors.table.tensors[i] for i in order))
    stored = stored_table(specs, wire)
    digest = hashlib.sha256()

    def put(piece: memoryview) -> None:
        out.write(piece)
        digest.update(piece)

    def header(data_sha256: str) -> bytes:
        return update_header(specs, stored, num_examples, data_sha256, padded_to=(size or 0) - stored.nbytes)

    placeholder = header("0" * 64)  # of the length that the real one will have
    nbytes = len(placeholder) + stored.nbytes
    if size is not None and (nbytes != size or len(placeholder) - 8 > MAX_HEADER_BYTES):
        raise BadInput(
            f"The update takes {nbytes:,} bytes, its place has {size:,}: it has other tensors than the model, or "
            "another dtype was agreed on."
        )
    out.write(placeholder)
    for index, spec, to in zip(order, specs.tensors, stored.tensors, strict=True):
        for piece in tensors.read(index):
            if to.dtype == spec.dtype:
                put(piece)
            else:
                for block in _converted(piece, spec, to.dtype):
                    put(block)
    final = header(digest.hexdigest())
    out.seek(0)
    out.write(final)
    out.seek(0, io.SEEK_END)
    return WrittenUpdate(nbytes, final, digest.hexdigest())


def stored_table(table: TensorTable, wire: str | None) -> TensorTable:
    """A table as an update stores it: float32 tensors in the wire dtype, if any."""
    return table.with_dtypes([wire if wire and t.dtype == "F32" else t.dtype for t in table.tensors])


def update_header(
    table: TensorTable, stored: TensorTable, num_examples: int, data_sha256: str, *, padded_to: int = 0
) -> bytes:
    """All that stands in front of an update's data section."""
    metadata = {"format": "pt", NUM_EXAMPLES: str(num_examples), DATA_SHA256: data_sha256}
    converted = {t.name: t.dtype for t, to in zip(table.tensors, stored.tensors, strict=True) if t.dtype != to.dtype}
    if converted:
        metadata[ORIGINAL_DTYPES] = json.dumps(converted, separators=(",", ":"))
    return serialize_header(stored, metadata, padded_to=padded_to)


def _converted(piece: memoryview, spec: TensorSpec, dtype: str) -> Iterator[memoryview]:
    itemsize = ITEMSIZE[spec.dtype]
    for start in range(0, len(piece), BLOCK * itemsize):
        block = piece[start : start + BLOCK * itemsize]
        values = np.empty(len(block) // itemsize, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            to_float64(block, spec.dtype, values)
        if not np.isfinite(values).all():
            # Narrowing may turn a NaN with a full payload, as GPUs make them, into a number.
            raise BadInput(f"Tensor {spec.name!r} has NaN or infinite values, which nobody can average. Submit others.")
        with np.errstate(over="ignore"):
            narrow = from_float64(values, dtype).data
        back = np.empty_like(values)
        to_float64(narrow, dtype, back)
        if np.isinf(back).any():
            raise BadInput(
                f"Tensor {spec.name!r} has values beyond the range of {dtype} (largest {np.abs(values).max():.3g}). "
                "Use --wire bfloat16, which has float32's range, or none."
            )
        yield narrow
