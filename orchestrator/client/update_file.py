"""Writes an update: a safetensors file, in safetensors' own order of tensors, whose metadata has the example count."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

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
from orchestrator.client.sources import Tensors
from orchestrator.errors import BadInput


@dataclass(frozen=True)
class WrittenUpdate:
    """An update file: its length, all bytes in front of its data section, and the SHA-256 of its data section."""

    nbytes: int
    header: bytes
    data_sha256: str


def write_update(
    tensors: Tensors, num_examples: int, out: IO[bytes], *, wire: str | None = None, size: int | None = None
) -> WrittenUpdate:
    """Write an update file, with the SHA-256 of the values in its header.

    Args:
        num_examples: the client's weight, 1 to 10**9.
        out: an empty file, open for writing and seeking.
        wire: `BF16` or `F16` to store float32 tensors in that dtype (rounded to nearest, ties to even).
        size: the file's length in bytes, to which the header is padded with spaces, as safetensors allows; None: no
            padding.

    Raises:
        BadInput: the example count is not a valid weight, the wire dtype cannot hold a value (NaN and Inf included), or
            the update is larger than `size`.
    """
    try:
        check_num_examples(num_examples)
    except InvalidUpdate as error:
        raise BadInput(f"{error}. Pass the number of examples that the client trained on.") from error
    specs = in_file_order(tensors.table)
    stored = stored_table(specs, wire)

    def header(data_sha256: str) -> bytes:
        return update_header(specs, stored, num_examples, data_sha256, padded_to=(size or 0) - stored.nbytes)

    placeholder = header("0" * 64)  # has the length of the final header
    nbytes = len(placeholder) + stored.nbytes
    if size is not None and (nbytes != size or len(placeholder) - 8 > MAX_HEADER_BYTES):
        raise BadInput(
            f"The update has {nbytes:,} bytes, the invitation is for {size:,}: it has other tensors than the model, or "
            "another dtype was agreed on."
        )
    out.write(placeholder)
    data_sha256 = _write_values(tensors, stored, out)
    final = header(data_sha256)
    out.seek(0)
    out.write(final)
    out.seek(0, io.SEEK_END)
    return WrittenUpdate(nbytes, final, data_sha256)


def _write_values(tensors: Tensors, stored: TensorTable, out: IO[bytes]) -> str:
    """Write the tensors in the file's order, in the stored dtypes; returns the SHA-256 of what was written."""
    digest = hashlib.sha256()
    for index, to in zip(canonical_order(tensors.table), stored.tensors, strict=True):
        spec = tensors.table.tensors[index]
        for piece in tensors.read(index):
            for block in (piece,) if to.dtype == spec.dtype else _converted(piece, spec, to.dtype):
                out.write(block)
                digest.update(block)
    return digest.hexdigest()


def in_file_order(table: TensorTable) -> TensorTable:
    """A tensor table in the order in which every update stores its tensors."""
    return TensorTable(tuple(table.tensors[i] for i in canonical_order(table)))


def stored_table(table: TensorTable, wire: str | None) -> TensorTable:
    """A tensor table with the dtypes in which an update stores it: the wire dtype, if any, in place of float32."""
    return table.with_dtypes([wire if wire and t.dtype == "F32" else t.dtype for t in table.tensors])


def update_header(
    table: TensorTable, stored: TensorTable, num_examples: int, data_sha256: str, *, padded_to: int = 0
) -> bytes:
    """All bytes in front of an update's data section."""
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
            # Narrowing can turn a NaN whose payload bits are all set, as GPUs make them, into a number.
            raise BadInput(
                f"Tensor {spec.name!r} has NaN or infinite values, which cannot be averaged. Check the training."
            )
        with np.errstate(over="ignore"):
            narrow = from_float64(values, dtype).data
        back = np.empty_like(values)
        to_float64(narrow, dtype, back)
        if np.isinf(back).any():
            raise BadInput(
                f"Tensor {spec.name!r} has values beyond the range of {dtype} (largest {np.abs(values).max():.3g}). "
                "Use --wire bfloat16, which has the range of float32, or leave --wire out."
            )
        yield narrow
