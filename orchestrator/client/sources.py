"""Reads the tensors that a client submits, from a state_dict or from a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lambdas.protocol.errors import InvalidTensorFile, shown
from lambdas.protocol.fields import is_text
from lambdas.protocol.limits import MAX_TENSOR_NAME
from lambdas.protocol.safetensors import MAX_HEADER_BYTES, Header, header_length, parse_header
from lambdas.protocol.tensor_table import ITEMSIZE, TensorSpec, TensorTable
from orchestrator.errors import BadInput

_COPY_BYTES = 4 * 1024**2
# The names of numpy and PyTorch, and those of safetensors.
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Tensors:
    """Tensors to submit: their table, and a function that reads the bytes of one, by its index, in pieces."""

    table: TensorTable
    read: Callable[[int], Iterator[memoryview]]


def from_state_dict(state_dict: Mapping[str, Any]) -> Tensors:
    """Tensors of a state_dict: name to torch.Tensor or numpy array, of any dtype that is averaged.

    Raises:
        BadInput: it is not a mapping of names to tensors, or a tensor has a dtype that is not averaged.
    """
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise BadInput("Expected a state_dict: a mapping of tensor names to tensors. Pass model.state_dict().")
    specs, values = [], []
    for name, value in state_dict.items():
        spec, array = _entry(name, value)
        specs.append(spec)
        values.append(array)
    return Tensors(TensorTable(tuple(specs)), lambda index: iter((values[index].data.cast("B"),)))


def _entry(name: object, value: Any) -> tuple[TensorSpec, np.ndarray[Any, Any]]:
    """One entry of a state_dict: its specification and its bytes, uint8."""
    if not isinstance(name, str) or name == "__metadata__" or not is_text(name) or len(name) > MAX_TENSOR_NAME:
        raise BadInput(
            f"Entry {shown(name)} of the state_dict: a tensor's name is a text of up to {MAX_TENSOR_NAME} "
            "characters other than '__metadata__', which safetensors keeps for itself. Rename it."
        )
    if not _is_tensor(value):
        raise BadInput(
            f"Entry {name!r} of the state_dict is a {type(value).__name__}, expected a torch.Tensor or numpy array."
        )
    dtype = _DTYPES.get(value.dtype.name if isinstance(value, np.ndarray) else str(value.dtype).removeprefix("torch."))
    if dtype is None:
        supported = ", ".join(ITEMSIZE)
        raise BadInput(f"Tensor {name!r} has dtype {value.dtype}, which is not averaged; supported: {supported}.")
    try:
        array = _as_array(value)
    except (RuntimeError, NotImplementedError) as error:
        # PyTorch has layouts that are not plain arrays, such as sparse and meta tensors.
        raise BadInput(
            f"Tensor {name!r} has no dense values on this machine ({str(error).splitlines()[0]}). Pass a dense one."
        ) from error
    return TensorSpec(name, dtype, tuple(int(d) for d in value.shape)), array


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # if torch is not imported, no value is one of its tensors
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    """A tensor's bytes, little-endian, as uint8 of shape (nbytes,)."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).reshape(-1)
        return array.view(np.uint8)
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    result: np.ndarray[Any, Any] = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return result


def from_file(path: Path) -> Tensors:
    """Tensors of a safetensors file (read piece by piece) or of a PyTorch state_dict file (weights only, no code).

    Raises:
        BadInput: the file cannot be read, or is neither of the two.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if _is_torch_file(start):
                return _from_torch_file(path)
            length = header_length(start, size)
            header = parse_header(file.read(length), size)
    except OSError as error:
        raise BadInput(
            f"Cannot read {path}: {error.strerror}. Name a safetensors or PyTorch state_dict file."
        ) from error
    except InvalidTensorFile as error:
        raise BadInput(
            f"{path}: {error}. Expected a safetensors file or a PyTorch state_dict saved with torch.save."
        ) from error
    if not header.table.tensors:
        raise BadInput(f"{path}: the file has no tensors. Expected a model's state_dict.")
    return _from_safetensors(path, header)


def _from_safetensors(path: Path, header: Header) -> Tensors:
    def read(index: int) -> Iterator[memoryview]:
        with path.open("rb") as file:
            file.seek(header.data_offset + header.table.first_byte[index])
            left = header.table.first_byte[index + 1] - header.table.first_byte[index]
            while left:
                piece = file.read(min(left, _COPY_BYTES))
                if not piece:
                    raise BadInput(f"{path} became shorter while it was read. Submit it again when it is complete.")
                left -= len(piece)
                yield memoryview(piece)

    return Tensors(header.table, read)


def _is_torch_file(start: bytes) -> bool:
    """Whether a file's first 8 bytes are those of torch.save: a zip archive, or a pickle (before PyTorch 1.6).

    The length of a safetensors header can begin with the same bytes (640 is 80 02 in hexadecimal); it is small.
    """
    return start[:2] in (b"PK", b"\x80\x02") and int.from_bytes(start, "little") > MAX_HEADER_BYTES


def _from_torch_file(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise BadInput(
            f"{path} is a PyTorch file, and PyTorch is not installed: pip install 'fedagg[torch]'."
        ) from error
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch raises many kinds of errors here; weights_only refuses everything but tensors.
        raise BadInput(
            f"{path} is not a PyTorch state_dict of tensors only ({_torch_reason(error)}). Save model.state_dict()."
        ) from error
    return from_state_dict(state_dict)


def _torch_reason(error: Exception) -> str:
    """PyTorch's reason, without its advice to load the file with weights_only=False, which would run code from it."""
    found = re.search(r"WeightsUnpickler error: ([^\n]*?)(?: was not an allowed|\. Please|\n|$)", str(error))
    text = found.group(1) if found else (str(error).splitlines() or [type(error).__name__])[0]
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
