"""A client's side, first half: a state_dict or a file becomes one update object, written once.

The update is a safetensors file in safetensors' own order of tensors, with the example count in its metadata. It does
not depend on the number of shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from botocore.exceptions import ClientError

from lambdas.average import BLOCK, from_float64, to_float64
from lambdas.contract import (
    ITEMSIZE,
    MAX_TENSOR_NAME,
    WIRE_DTYPES,
    LatestModel,
    RoundManifest,
    TensorSpec,
    TensorTable,
    check_name,
    is_text,
    latest_key,
    manifest_key,
    sha256_hex,
    shown,
    update_key,
)
from lambdas.errors import InvalidTensorFile, InvalidUpdate, TensorTableMismatch
from lambdas.tensors import (
    DATA_SHA256,
    MAX_HEADER_BYTES,
    NUM_EXAMPLES,
    ORIGINAL_DTYPES,
    canonical_order,
    check_num_examples,
    check_same_table,
    header_length,
    parse_header,
    serialize_header,
)
from orchestrator.aws import DENIED, create_large_object, error_code, get_bytes, read_object
from orchestrator.errors import BadInput, OrchestratorError, RoundConflict
from orchestrator.record import read_record

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WIRE_NAMES = {"bfloat16": "BF16", "float16": "F16"}
_COPY_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Tensors:
    """Tensors to submit: their table, and how to read the bytes of one (by index), in pieces."""

    table: TensorTable
    read: Callable[[int], Iterator[memoryview]]


@dataclass(frozen=True)
class Submitted:
    """What `submit` stored; `created` is False when the very same update was there already.

    `header_sha256` is the client's receipt: it covers the tensor table, the example count and `data_sha256`; the
    round's manifest and report repeat it, and `orchestrator verify` follows it down to the bytes.
    """

    key: str
    nbytes: int
    header_sha256: str
    data_sha256: str
    num_examples: int
    created: bool


# --- sources -------------------------------------------------------------------------------------------------------


def from_state_dict(state_dict: Mapping[str, Any]) -> Tensors:
    """Tensors of a state_dict: name to torch.Tensor or numpy array, of any averaged dtype.

    Raises:
        BadInput: not a mapping of names to tensors, or a dtype that is not averaged.
    """
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise BadInput("Expected a state_dict: a mapping of tensor names to tensors. Pass model.state_dict().")
    specs, values = [], []
    for name, value in state_dict.items():
        if not isinstance(name, str) or name == "__metadata__" or not is_text(name) or len(name) > MAX_TENSOR_NAME:
            raise BadInput(
                f"Entry {shown(name)} of the state_dict: a tensor's name is a text of up to {MAX_TENSOR_NAME} "
                "characters other than '__metadata__', which safetensors keeps for itself. Rename it."
            )
        if not _is_tensor(value):
            raise BadInput(
                f"Entry {name!r} of the state_dict is a {type(value).__name__}, expected a torch.Tensor or numpy array."
            )
        dtype = _dtype_name(value)
        if dtype is None:
            raise BadInput(
                f"Tensor {name!r} has dtype {value.dtype}, which is not averaged; supported: {_supported()}."
            )
        try:
            array = _as_array(value)
        except (RuntimeError, NotImplementedError) as error:
            # torch's sparse, meta and other layouts without a plain array of values
            raise BadInput(
                f"Tensor {name!r} has no dense values on this machine ({str(error).splitlines()[0]}). Pass a dense one."
            ) from error
        specs.append(TensorSpec(name, dtype, tuple(int(d) for d in value.shape)))
        values.append(array)
    return Tensors(TensorTable(tuple(specs)), lambda index: iter((values[index].data.cast("B"),)))


def _supported() -> str:
    return ", ".join(ITEMSIZE)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # where it is not imported, nothing can be its tensor
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


_TORCH_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def _dtype_name(value: Any) -> str | None:
    name = value.dtype.name if isinstance(value, np.ndarray) else str(value.dtype).removeprefix("torch.")
    return _TORCH_NAMES.get(name)


def from_file(path: Path) -> Tensors:
    """Tensors of a safetensors file (read piece by piece) or of a PyTorch state_dict file (weights only, no code).

    Raises:
        BadInput: neither of the two.
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
        # torch raises whatever its unpickler meets; weights_only refuses everything but tensors.
        raise BadInput(
            f"{path}: no PyTorch state_dict of tensors only ({_torch_reason(error)}). Save model.state_dict()."
        ) from error
    return from_state_dict(state_dict)


def _torch_reason(error: Exception) -> str:
    """What torch found, without its advice to load the file with weights_only=False, which would run its code."""
    found = re.search(r"WeightsUnpickler error: ([^\n]*?)(?: was not an allowed|\. Please|\n|$)", str(error))
    text = found.group(1) if found else (str(error).splitlines() or [type(error).__name__])[0]
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


# --- writing -------------------------------------------------------------------------------------------------------


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


def submit(
    s3: S3Client,
    bucket: str,
    round_id: str,
    client: str,
    tensors: Tensors,
    num_examples: int,
    *,
    wire: str | None = None,
) -> Submitted:
    """Store a client's update for a round, once. Submitting the very same update again changes nothing.

    Raises:
        BadInput, InvalidName: an argument that cannot be used.
        RoundConflict: the client has submitted another update, or the round is closed.
        TensorTableMismatch: the model that the round continues has other tensors.
    """
    key = update_key(round_id, client)
    check_name("round", round_id)
    if wire is not None and wire not in WIRE_DTYPES:
        raise BadInput(f"Unknown wire dtype {wire!r}; expected one of {', '.join(WIRE_NAMES)}.")
    with tempfile.TemporaryFile(prefix="update-") as file:
        update = write_update(tensors, num_examples, file, wire=wire)
        submitted = Submitted(
            key, update.nbytes, sha256_hex(update.header), update.data_sha256, num_examples, created=False
        )
        pinned = _pinned_clients(s3, bucket, round_id)
        if pinned is not None:
            if client in pinned and _is_stored(s3, bucket, key, update):
                return submitted
            raise RoundConflict(
                f"Round {round_id} is closed: its updates are pinned. "
                f"Submit client {client}'s update to the next round."
            )
        _check_against_latest(s3, bucket, round_id, client, tensors.table)
        file.seek(0)
        created = create_large_object(s3, bucket, key, file, update.nbytes)
    if not created and not _is_stored(s3, bucket, key, update):
        raise RoundConflict(
            f"Client {client} has already submitted another update to round {round_id}. Updates are written once: "
            "submit to another round, or under another client id."
        )
    # The round may have been closed while the update was on its way.
    pinned = _pinned_clients(s3, bucket, round_id)
    if pinned is not None and client not in pinned:
        raise RoundConflict(
            f"Round {round_id} was closed while client {client}'s update was on its way, and goes on without it. "
            "Submit it to the next round."
        )
    return replace(submitted, created=created)


def _pinned_clients(s3: S3Client, bucket: str, round_id: str) -> set[str] | None:
    """Whose updates are in a closed round; None while it is open, or where this client may not know."""
    try:
        found = read_object(s3, bucket, manifest_key(round_id))
    except ClientError as error:
        if error_code(error) in DENIED:
            return None
        raise
    return {p.client for p in RoundManifest.from_bytes(found[0]).participants} if found else None


def _is_stored(s3: S3Client, bucket: str, key: str, update: WrittenUpdate) -> bool:
    """Whether this very update is there: its header is, and that has the digest of the values."""
    try:
        stored, _ = get_bytes(s3, Bucket=bucket, Key=key, Range=f"bytes=0-{len(update.header) - 1}")
    except ClientError as error:
        if error_code(error) == "NoSuchKey":
            return False
        raise
    return stored == update.header


def _check_against_latest(s3: S3Client, bucket: str, round_id: str, client: str, table: TensorTable) -> None:
    """An early word to the client; `start-round` checks every update again."""
    try:
        record = read_record(s3, bucket, round_id)
        expected = latest_table(s3, bucket, record.model) if record else None
    except ClientError as error:
        # To who may not list the bucket, S3 says the same of what is missing and of what is forbidden.
        if error_code(error) in DENIED:
            return
        raise
    if expected is not None:
        ordered = TensorTable(tuple(table.tensors[i] for i in canonical_order(table)))
        try:
            check_same_table(ordered, expected[1], source=f"the model's last global model, of round {expected[0]}")
        except TensorTableMismatch as error:
            raise TensorTableMismatch(f"client {client}: {error}.", client=client) from error


def latest_table(s3: S3Client, bucket: str, model: str) -> tuple[str, TensorTable] | None:
    """Round and tensor table of a model's newest global model; None before the first."""
    found = read_object(s3, bucket, latest_key(model))
    if found is None:
        return None
    latest = LatestModel.from_bytes(found[0])
    try:
        raw = read_header(s3, bucket, latest.key, latest.size)
        return latest.round_id, parse_header(raw, latest.size).table
    except (InvalidTensorFile, ClientError) as error:
        if isinstance(error, ClientError) and error_code(error) not in ("NoSuchKey", "InvalidRange"):
            raise
        raise OrchestratorError(
            f"The newest global model of {model}, s3://{bucket}/{latest.key}, is not the one that round "
            f"{latest.round_id} published ({error}). `orchestrator verify --round {latest.round_id}` says what was "
            "changed."
        ) from error


def read_header(
    s3: S3Client, bucket: str, key: str, size: int, *, etag: str | None = None, guess: int = 64 * 1024
) -> bytes:
    """The safetensors header of an object (without its 8-byte length), with one GET where `guess` covers it.

    Raises:
        InvalidTensorFile: the object is no safetensors file.
        ClientError: S3 refused; 412 where the object is not the one with that ETag.
    """
    match: Any = {"IfMatch": etag} if etag else {}
    if size < 8:
        header_length(b"", size)
    first, _ = get_bytes(s3, Bucket=bucket, Key=key, Range=f"bytes=0-{min(size, guess) - 1}", **match)
    length = header_length(first, size)
    if len(first) < 8 + length:
        rest, _ = get_bytes(s3, Bucket=bucket, Key=key, Range=f"bytes={len(first)}-{7 + length}", **match)
        first += rest
    return first[8 : 8 + length]
