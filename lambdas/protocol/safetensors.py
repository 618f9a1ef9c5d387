"""The headers of safetensors files: from and to tensor tables, and the runs of equal dtype inside a shard. No I/O.

The format (huggingface/safetensors, README "Format"): 8 bytes little-endian length N of the header, N bytes of JSON
`{"name": {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {str: str}}` padded with
spaces, then the data section. Offsets count from the start of the data section, which has no gaps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lambdas.protocol.documents import load_json, sha256_hex
from lambdas.protocol.errors import InvalidTensorFile, InvalidUpdate, TensorTableMismatch, shown
from lambdas.protocol.fields import is_sha256, is_size, is_text
from lambdas.protocol.limits import MAX_DIMENSIONS, MAX_EXAMPLES, MAX_TENSOR_NAME, MAX_TENSORS
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.tensor_table import ITEMSIZE, WIRE_DTYPES, TensorSpec, TensorTable

# safetensors itself allows 100 MB (MAX_HEADER_SIZE in its Rust source). Parsing a header takes about twenty times its
# length in memory, and the header of MAX_TENSORS tensors is much smaller than this limit.
MAX_HEADER_BYTES = 16 * 1024**2

# The order in which the safetensors library stores dtypes (`Dtype` in its Rust source, last to first).
_STORED_FIRST = ("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "I8", "U8", "BOOL")

# Names in the `__metadata__` of an update.
NUM_EXAMPLES = "num_examples"
ORIGINAL_DTYPES = "original_dtypes"
DATA_SHA256 = "data_sha256"
_INTEGER = re.compile(r"-?[0-9]{1,19}")

# The global model's `__metadata__`. It contains nothing about the round, so that equal averages are equal files.
GLOBAL_METADATA: Mapping[str, str] = {"format": "pt"}


@dataclass(frozen=True)
class Header:
    """A parsed header: the tensor table in file order, the metadata, and the offset of the data section."""

    table: TensorTable
    metadata: Mapping[str, str]
    data_offset: int


def header_length(prefix: bytes, file_size: int) -> int:
    """Bytes of header that follow the 8-byte length at the start (`prefix`) of a file of `file_size` bytes.

    Raises:
        InvalidTensorFile: the file is too short, or the length is impossible.
    """
    if len(prefix) < 8 or file_size < 8:
        raise InvalidTensorFile(f"not a safetensors file: {file_size} bytes long, expected at least 8")
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES or length + 8 > file_size:
        raise InvalidTensorFile(
            f"not a safetensors file, or a truncated one: its first 8 bytes announce a header of {length} bytes, "
            f"the file has {file_size} bytes, and the limit of a header is {MAX_HEADER_BYTES}"
        )
    return length


def parse_header(raw: bytes, file_size: int) -> Header:
    """Parse the header (the bytes after the 8-byte length) of a file of `file_size` bytes.

    Allocates only the parsed JSON, whatever sizes the header claims.

    Raises:
        InvalidTensorFile: the header is not JSON, contradicts itself or the file's length, has tensors with gaps or
            overlaps, or a dtype that is not averaged. The message does not name the file, which the caller knows.
    """
    try:
        entries = load_json(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidTensorFile(f"not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise InvalidTensorFile("not a safetensors file: its header is not a JSON object")
    if len(entries) > MAX_TENSORS:
        raise InvalidTensorFile(f"its header lists {len(entries)} tensors; at most {MAX_TENSORS} are averaged")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidTensorFile("__metadata__ must map strings to strings")
    rows = sorted((_parse_entry(name, entry) for name, entry in entries.items()), key=lambda row: (row[1], row[2]))
    position = 0
    for spec, begin, end in rows:
        if begin != position:
            raise InvalidTensorFile(
                f"tensor {shown(spec.name)} starts at byte {begin} of the data section, expected {position}: "
                "expected tensors without gaps or overlaps"
            )
        position = end
    data_offset = 8 + len(raw)
    if data_offset + position != file_size:
        raise InvalidTensorFile(
            f"the header describes a file of {data_offset + position} bytes, this one has {file_size}: "
            "truncated or padded"
        )
    return Header(TensorTable(tuple(spec for spec, _, _ in rows)), metadata, data_offset)


def _parse_entry(name: str, entry: object) -> tuple[TensorSpec, int, int]:
    what = f"tensor {shown(name)}"
    if not is_text(name) or len(name) > MAX_TENSOR_NAME:
        raise InvalidTensorFile(f"{what}: its name is not Unicode text of up to {MAX_TENSOR_NAME} characters")
    if not isinstance(entry, dict):
        raise InvalidTensorFile(f"{what}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise InvalidTensorFile(
            f"{what} has dtype {shown(dtype)}, which is not averaged; supported: {', '.join(ITEMSIZE)}"
        )
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(is_size(d) for d in shape)):
        raise InvalidTensorFile(f"{what}: its shape is not a list of at most {MAX_DIMENSIONS} sizes from 0 to 2**63-1")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(is_size(o) for o in offsets)):
        raise InvalidTensorFile(f"{what}: data_offsets is not a pair of byte offsets")
    spec = TensorSpec(name, dtype, tuple(shape))
    begin, end = offsets
    if end - begin != spec.elements * ITEMSIZE[dtype]:
        raise InvalidTensorFile(
            f"{what}: {dtype} of shape {shape} takes {spec.elements * ITEMSIZE[dtype]} bytes, "
            f"data_offsets span {end - begin}"
        )
    return spec, begin, end


def serialize_header(table: TensorTable, metadata: Mapping[str, str], *, padded_to: int = 0) -> bytes:
    """The first bytes of a safetensors file: length, JSON, and spaces up to a multiple of 8.

    Equal tables and metadata give equal bytes.

    Args:
        padded_to: add spaces up to this total length in bytes, a multiple of 8; a longer header is not changed.
    """
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for i, t in enumerate(table.tensors):
        offsets = [table.first_byte[i], table.first_byte[i + 1]]
        entries[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * max(-len(text) % 8, padded_to - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def global_header(table: TensorTable) -> bytes:
    """The bytes in front of the data section of a global model."""
    return serialize_header(table, GLOBAL_METADATA)


def canonical_order(table: TensorTable) -> list[int]:
    """The indices of the tensors in the order in which the safetensors library stores them: by dtype, then by name."""
    tensors = table.tensors
    return sorted(range(len(tensors)), key=lambda i: (_STORED_FIRST.index(tensors[i].dtype), tensors[i].name))


# --- updates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UpdateHeader:
    """The header of an update.

    Attributes:
        table: the model's tensor table.
        dtypes: the dtypes in which this update stores the tensors.
        num_examples: the update's weight.
        sha256: SHA-256 of everything in front of the data section.
        data_sha256: SHA-256 of the data section according to the header, not checked; None where it gives none.
    """

    table: TensorTable
    dtypes: tuple[str, ...]
    num_examples: int
    data_offset: int
    sha256: str
    data_sha256: str | None


def check_num_examples(value: int) -> int:
    """Return `value` if it can be a weight, else raise InvalidUpdate, which does not name the client."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_EXAMPLES:
        raise InvalidUpdate(
            f"an example count of {value} is not a valid weight; expected an integer from 1 to {MAX_EXAMPLES}"
        )
    return value


def parse_update_header(raw: bytes, file_size: int) -> UpdateHeader:
    """Parse an update's header (the bytes after the 8-byte length).

    Raises:
        InvalidTensorFile: see `parse_header`.
        InvalidUpdate: the example count is missing or out of range, or `data_sha256` is not a SHA-256.
    """
    header = parse_header(raw, file_size)
    text = header.metadata.get(NUM_EXAMPLES)
    if text is None or not _INTEGER.fullmatch(text):
        found = "nothing" if text is None else shown(text)
        raise InvalidUpdate(
            f"its metadata has no {NUM_EXAMPLES} ({found} found): submit it with `orchestrator submit --examples`, "
            f'or save it with metadata {{"{NUM_EXAMPLES}": "<count>"}}'
        )
    data_sha256 = header.metadata.get(DATA_SHA256)
    if data_sha256 is not None and not is_sha256(data_sha256):
        raise InvalidUpdate(
            f"its metadata's {DATA_SHA256} is {shown(data_sha256)}, expected a SHA-256 in lower-case hexadecimal"
        )
    table = header.table
    stored = tuple(t.dtype for t in table.tensors)
    return UpdateHeader(
        table=table.with_dtypes(_original_dtypes(header)),
        dtypes=stored,
        num_examples=check_num_examples(int(text)),
        data_offset=header.data_offset,
        sha256=sha256_hex(len(raw).to_bytes(8, "little") + raw),
        data_sha256=data_sha256,
    )


def _original_dtypes(header: Header) -> list[str]:
    """The model's dtypes. An update may store some tensors in a smaller wire dtype."""
    tensors = header.table.tensors
    text = header.metadata.get(ORIGINAL_DTYPES)
    if text is None:
        return [t.dtype for t in tensors]
    try:
        original = load_json(text)
    except (ValueError, RecursionError) as error:
        raise InvalidTensorFile(f"metadata {ORIGINAL_DTYPES!r} is not JSON ({error})") from error
    stored = {t.name: t.dtype for t in tensors}
    if not isinstance(original, dict) or any(
        stored.get(name) not in WIRE_DTYPES or dtype != "F32" for name, dtype in original.items()
    ):
        raise InvalidTensorFile(
            f"metadata {ORIGINAL_DTYPES!r} must map tensors stored as {' or '.join(WIRE_DTYPES)} to 'F32'"
        )
    return [original.get(t.name, t.dtype) for t in tensors]


def check_same_table(table: TensorTable, expected: TensorTable, *, source: str) -> None:
    """Raise TensorTableMismatch where `table` differs from `expected`; `source` names the expected table."""
    if table == expected:
        return
    have, want = {t.name: t for t in table.tensors}, {t.name: t for t in expected.tensors}
    for name, spec in want.items():
        what = f"tensor {shown(name)}"
        if name not in have:
            raise TensorTableMismatch(f"{what} is missing; {source} has it")
        found = have[name]
        if found.shape != spec.shape:
            raise TensorTableMismatch(
                f"{what} has shape {list(found.shape)}, expected {list(spec.shape)} as in {source}"
            )
        if found.dtype != spec.dtype:
            raise TensorTableMismatch(f"{what} is {found.dtype}, expected {spec.dtype} as in {source}")
    for name in have:
        if name not in want:
            raise TensorTableMismatch(f"tensor {shown(name)} is unknown; {source} does not have it")
    raise TensorTableMismatch(
        f"its tensors are stored in another order than in {source}; save it again with `orchestrator submit`, which "
        "stores them in the order of the safetensors library"
    )


# --- the inside of a shard -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Neighbouring values that have one dtype in every layout: flat indices start <= i < stop.

    Attributes:
        dtype: dtype of the global model.
        stored: dtype per layout of the manifest.
    """

    start: int
    stop: int
    dtype: str
    stored: tuple[str, ...]


def runs(manifest: RoundManifest, start: int, stop: int) -> Iterator[Run]:
    """Divide the flat indices start <= i < stop into maximal runs of equal dtype, in order."""
    table = manifest.table
    pending: Run | None = None
    index = table.tensor_at(start) if start < stop else 0
    position = start
    while position < stop:
        dtype = table.tensors[index].dtype
        stored = tuple(layout[index] for layout in manifest.layouts)
        end = min(stop, table.first_element[index + 1])
        if end == position:  # a tensor without values
            index += 1
            continue
        if pending and (pending.dtype, pending.stored) == (dtype, stored):
            pending = Run(pending.start, end, dtype, stored)
        else:
            if pending:
                yield pending
            pending = Run(position, end, dtype, stored)
        position = end
        index += 1
    if pending:
        yield pending
