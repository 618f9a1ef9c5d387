"""The contracts of a round: object keys, manifest, job and result. Standard library only.

Both sides import this module, and the function zip ships it under the same import path, so that a key or a field is
spelled in one place. Documents are canonical JSON (sorted keys, no spaces, UTF-8); a document's SHA-256 is the
SHA-256 of those bytes. Everything that arrives is parsed here, strictly, into the dataclasses below; whatever does
not have the documented form raises InvalidContract, which names the document and the field.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from lambdas.errors import InvalidContract, InvalidName

SCHEMA = 1

# How a round is averaged: by shards of the model, or by one of the two trees that GradsSharding is compared with, whose
# aggregators hold the whole model (lambdas/trees.py).
GRADS_SHARDING, LAMBDA_FL, LIFL = "grads-sharding", "lambda-fl", "lifl"
ARCHITECTURES = (GRADS_SHARDING, LAMBDA_FL, LIFL)
TREES = (LAMBDA_FL, LIFL)

# safetensors' dtype names that are averaged, with their size in bytes.
ITEMSIZE: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

# Amazon S3 user guide, "Multipart upload limits"; the last part may be smaller than the minimum.
MIN_PART_BYTES = 5 * 1024**2
MAX_PART_BYTES = 5 * 1024**3
MAX_PARTS = 10_000

MAX_SHARDS = MAX_PARTS
MAX_CLIENTS = 100_000
# What a header or manifest may list. Both are read whole, in small functions; the largest models have some ten
# thousand tensors with names of some hundred characters.
MAX_TENSORS = 50_000
MAX_TENSOR_NAME = 1024
MAX_DIMENSIONS = 64
# A billion examples on one client is a unit error, not a data set. It also keeps every sum of weights an exact
# float64: MAX_CLIENTS * MAX_EXAMPLES < 2**53.
MAX_EXAMPLES = 10**9
# The wire dtypes that a float32 tensor may be stored as, to send fewer bytes.
WIRE_DTYPES = ("BF16", "F16")

_MAX_INT = 2**63 - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")


def shown(value: object) -> str:
    """A value as an error's message shows it: quoted, without control characters, and short whatever it is."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_name(kind: str, value: str) -> str:
    """Return `value` if it can be a client, round or model name, else raise InvalidName.

    Names become parts of object keys, so they are kept to 1-128 letters, digits, `-` and `_`, and start with a
    letter or digit: no slashes, no dots, nothing that a shell or a URL would have to escape.
    """
    if not isinstance(value, str) or not _NAME.match(value):
        raise InvalidName(
            f"{shown(value)} is no valid {kind}: expected 1 to 128 letters, digits, '-' or '_', starting with a letter "
            f"or digit. Choose another {kind}."
        )
    return value


# --- object keys ---------------------------------------------------------------------------------------------------
# rounds/ holds what a round needs while it runs and expires; models/ holds what rounds publish and is kept.

UPDATE_SUFFIX = ".safetensors"


def rounds_prefix() -> str:
    """Prefix of every round's working objects."""
    return "rounds/"


def round_prefix(round_id: str) -> str:
    """Prefix of one round's working objects; a directory listing of `rounds_prefix()` yields these."""
    return f"rounds/{check_name('round', round_id)}/"


def round_key(round_id: str) -> str:
    """Key of the round record, written once when the round is opened."""
    return round_prefix(round_id) + "round.json"


def updates_prefix(round_id: str) -> str:
    """Prefix of the round's client updates."""
    return round_prefix(round_id) + "updates/"


def update_key(round_id: str, client: str) -> str:
    """Key of one client's update."""
    return updates_prefix(round_id) + check_name("client id", client) + UPDATE_SUFFIX


def client_of(key: str) -> str:
    """The client id in an update's key; InvalidName where the key is not an update's."""
    name = key.rsplit("/", 1)[-1]
    if not name.endswith(UPDATE_SUFFIX):
        raise InvalidName(f"{shown(key)} is no update: expected rounds/<round>/updates/<client>{UPDATE_SUFFIX}.")
    return check_name("client id", name.removesuffix(UPDATE_SUFFIX))


def manifest_key(round_id: str) -> str:
    """Key of the manifest that freezes the round."""
    return round_prefix(round_id) + "manifest.json"


def shards_prefix(round_id: str) -> str:
    """Prefix of the shard objects (where shards are too small to be parts of a multipart upload)."""
    return round_prefix(round_id) + "shards/"


def shard_key(round_id: str, shard: int, shards: int, revision: int = 0) -> str:
    """Key of one shard object; M and the manifest's revision are part of it: a round planned anew never mixes."""
    return shards_prefix(round_id) + f"r{revision}/{shard:05d}-of-{shards:05d}"


def norms_key(round_id: str, shard: int, shards: int, revision: int) -> str:
    """Key of the clients' sums of squares over one shard, where the manifest wants them in S3 (`Norms`)."""
    return round_prefix(round_id) + f"norms/r{revision}/{shard:05d}-of-{shards:05d}"


def partials_prefix(round_id: str) -> str:
    """Prefix of the partial sums that a tree's aggregators hand on."""
    return round_prefix(round_id) + "partials/"


def partial_key(round_id: str, manifest_sha256: str, level: int, aggregator: int) -> str:
    """Key of one aggregator's partial sum; the manifest is part of it: a round that is planned anew never mixes."""
    return partials_prefix(round_id) + f"{manifest_sha256[:16]}/level-{level}/{aggregator:05d}{UPDATE_SUFFIX}"


def report_key(round_id: str) -> str:
    """Key of the round's report."""
    return round_prefix(round_id) + "report.json"


def global_key(model: str, round_id: str) -> str:
    """Key of the global model that a round publishes."""
    return f"models/{check_name('model', model)}/{check_name('round', round_id)}/global.safetensors"


def latest_key(model: str) -> str:
    """Key of the pointer to a model's newest global model."""
    return f"models/{check_name('model', model)}/latest.json"


# --- canonical JSON and strict parsing -----------------------------------------------------------------------------


def canonical_json(document: object) -> bytes:
    """The bytes of a document: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def is_text(value: str) -> bool:
    """Whether a string has a UTF-8 form: JSON escapes can smuggle in half a surrogate pair, which has none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def is_size(value: object) -> bool:
    """Whether a JSON value is a number of values or bytes: an integer from 0 to 2**63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INT


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hexadecimal."""
    return _SHA256.fullmatch(text) is not None


class Fields:
    """One JSON object on its way in: every read checks type and range and names document and field in its error."""

    def __init__(self, what: str, value: object) -> None:
        if not isinstance(value, dict):
            raise InvalidContract(f"{what}: expected a JSON object, found {type(value).__name__}.")
        self.what = what
        self._value = value

    @classmethod
    def parse(cls, what: str, data: bytes | str) -> Fields:
        """Parse JSON text; anything else than an object of this schema raises InvalidContract."""
        try:
            fields = cls(what, json.loads(data))
        except (ValueError, RecursionError) as error:
            raise InvalidContract(f"{what}: not JSON ({type(error).__name__}: {error}).") from error
        schema = fields._value.get("schema")
        if schema != SCHEMA:
            raise InvalidContract(
                f"{what}: schema is {shown(schema)}, this version reads {SCHEMA}. Deploy and run the same release."
            )
        return fields

    @property
    def document(self) -> Mapping[str, Any]:
        """The object itself, for documents that have more fields than their readers look at."""
        return self._value

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def _fail(self, name: str, expected: str) -> InvalidContract:
        found = shown(self._value[name]) if name in self._value else "nothing"
        return InvalidContract(f"{self.what}: field {name!r}: expected {expected}, found {found}.")

    def text(self, name: str) -> str:
        value = self._value.get(name)
        if not isinstance(value, str):
            raise self._fail(name, "a string")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._value.get(name) is None else self.text(name)

    def digest(self, name: str) -> str:
        value = self.text(name)
        if not is_sha256(value):
            raise self._fail(name, "a SHA-256 in lower-case hexadecimal")
        return value

    def optional_digest(self, name: str) -> str | None:
        return None if self._value.get(name) is None else self.digest(name)

    def name(self, name: str, kind: str) -> str:
        try:
            return check_name(kind, self.text(name))
        except InvalidName as error:
            raise InvalidContract(f"{self.what}: field {name!r}: {error}") from error

    def optional_name(self, name: str, kind: str) -> str | None:
        return None if self._value.get(name) is None else self.name(name, kind)

    def optional_names(self, name: str, kind: str) -> tuple[str, ...] | None:
        if self._value.get(name) is None:
            return None
        try:
            return tuple(check_name(kind, value) for value in self.array(name))
        except InvalidName as error:
            raise InvalidContract(f"{self.what}: field {name!r}: {error}") from error

    def integer(self, name: str, minimum: int, maximum: int) -> int:
        value = self._value.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self._fail(name, f"an integer from {minimum} to {maximum}")
        return value

    def boolean(self, name: str) -> bool:
        value = self._value.get(name)
        if not isinstance(value, bool):
            raise self._fail(name, "true or false")
        return value

    def optional_integer(self, name: str, minimum: int, maximum: int) -> int | None:
        return None if self._value.get(name) is None else self.integer(name, minimum, maximum)

    def number(self, name: str) -> float:
        value = self._value.get(name)
        try:
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except OverflowError:  # an integer beyond float64
            pass
        raise self._fail(name, "a finite number")

    def optional_number(self, name: str) -> float | None:
        return None if self._value.get(name) is None else self.number(name)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        value = self.text(name)
        if value not in choices:
            raise self._fail(name, "one of " + ", ".join(choices))
        return value

    def array(self, name: str) -> list[Any]:
        value = self._value.get(name)
        if not isinstance(value, list):
            raise self._fail(name, "an array")
        return value

    def objects(self, name: str) -> list[Fields]:
        return [Fields(f"{self.what}: {name}[{i}]", item) for i, item in enumerate(self.array(name))]

    def object(self, name: str) -> Fields:
        return Fields(f"{self.what}: {name}", self._value.get(name))

    def optional_object(self, name: str) -> Fields | None:
        return None if self._value.get(name) is None else self.object(name)

    def children(self) -> list[Fields]:
        return [self.object(name) for name in sorted(self._value)]

    def integers(self, name: str) -> tuple[int, ...]:
        values = self.array(name)
        if any(not isinstance(v, int) or isinstance(v, bool) for v in values):
            raise self._fail(name, "an array of integers")
        return tuple(values)


# --- the tensor table and its shards -------------------------------------------------------------------------------


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
    """Tensors in the order in which their values lie in the data section, one after the other, without gaps.

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
        """SHA-256 of the table's canonical JSON: equal tables, equal digest."""
        return sha256_hex(canonical_json(self.to_json()))

    def tensor_at(self, element: int) -> int:
        """Index of the tensor that holds flat index `element` (tensors without values hold none)."""
        return bisect.bisect_right(self.first_element, element, hi=len(self.tensors)) - 1

    def byte_at(self, element: int) -> int:
        """Byte offset of flat index `element`; `elements` itself maps to the end of the data section."""
        if element == self.elements:
            return self.nbytes
        index = self.tensor_at(element)
        return self.first_byte[index] + (element - self.first_element[index]) * ITEMSIZE[self.tensors[index].dtype]

    def with_dtypes(self, dtypes: Sequence[str]) -> TensorTable:
        """The same tensors stored as other dtypes (an update's wire layout)."""
        return TensorTable(tuple(TensorSpec(t.name, d, t.shape) for t, d in zip(self.tensors, dtypes, strict=True)))

    def to_json(self) -> list[object]:
        return [[t.name, t.dtype, list(t.shape)] for t in self.tensors]

    @classmethod
    def from_json(cls, what: str, rows: Sequence[Any]) -> TensorTable:
        if len(rows) > MAX_TENSORS:
            raise InvalidContract(f"{what}: {len(rows)} tensors; at most {MAX_TENSORS} are averaged.")
        tensors = []
        for i, row in enumerate(rows):
            if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[2], list)):
                raise InvalidContract(f"{what}: tensors[{i}]: expected [name, dtype, shape], found {shown(row)}.")
            name, dtype, shape = row
            if not is_text(name) or len(name) > MAX_TENSOR_NAME:
                raise InvalidContract(
                    f"{what}: tensor {shown(name)}: its name is no Unicode text of up to {MAX_TENSOR_NAME} characters."
                )
            if not isinstance(dtype, str) or dtype not in ITEMSIZE:
                raise InvalidContract(f"{what}: tensor {shown(name)}: dtype {shown(dtype)} is not averaged.")
            if len(shape) > MAX_DIMENSIONS or not all(is_size(d) for d in shape):
                raise InvalidContract(f"{what}: tensor {shown(name)}: shape {shown(shape)} has an invalid dimension.")
            tensors.append(TensorSpec(name, dtype, tuple(shape)))
        if len({t.name for t in tensors}) != len(tensors):
            raise InvalidContract(f"{what}: two tensors have the same name.")
        table = cls(tuple(tensors))
        if table.nbytes > _MAX_INT:
            raise InvalidContract(f"{what}: the tensors add up to {table.nbytes} bytes, more than any object holds.")
        return table


def shard_bounds(table: TensorTable, shards: int) -> tuple[int, ...]:
    """Cut a table into `shards` shards of nearly equal bytes, on element boundaries.

    Returns:
        shards + 1 ascending flat indices; shard m holds the values bounds[m] <= index < bounds[m + 1]. Together they
        cover every value exactly once. A table with fewer values than shards yields empty shards.
    """
    if not 1 <= shards <= MAX_SHARDS:
        raise InvalidContract(f"Cutting a model into {shards} shards: expected 1 to {MAX_SHARDS}.")
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


# --- manifest.json -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Participant:
    """One pinned update.

    Attributes:
        etag: S3's ETag, quotes included, as `If-Match` takes it.
        size: length of the object in bytes.
        data_offset: where its data section starts (8 + header length).
        num_examples: the weight in the average.
        header_sha256: SHA-256 of everything in front of the data section, as it was when the round was pinned.
        data_sha256: SHA-256 of the data section, as the header gives it; None where the update was written by a tool
            that leaves it out.
        layout: index into the manifest's `layouts`: the dtypes in which this update stores the tensors.
    """

    client: str
    key: str
    etag: str
    size: int
    data_offset: int
    num_examples: int
    header_sha256: str
    data_sha256: str | None = None
    layout: int = 0


@dataclass(frozen=True)
class Output:
    """Where the averaged shards go.

    `multipart`: shard m is part m + 1 of the upload `upload_id` to `key`. `objects`: shard m is an object of its own
    (S3 wants parts of 5 MiB and more) and the orchestrator puts them together at `key`.
    """

    kind: str
    key: str
    upload_id: str | None = None


@dataclass(frozen=True)
class Exclusion:
    """A client whose update is in none of the round's shards.

    Attributes:
        kind: the class of the error, such as `NonFiniteUpdate`.
        reason: what is wrong with the update, a sentence.
    """

    client: str
    kind: str
    reason: str

    @classmethod
    def from_fields(cls, f: Fields) -> Exclusion:
        return cls(f.name("client", "client id"), f.text("kind"), f.text("reason"))


# Where workers leave the clients' sums of squares: in their result messages, or in an object per shard that is there
# before the shard is (where the round depends on them, or a message would be too long).
NORMS = ("results", "objects")


@dataclass(frozen=True)
class RoundManifest:
    """`rounds/R/manifest.json`: the frozen round. Its SHA-256 is in every job.

    Attributes:
        participants: in ascending client id, the order of summation.
        table: the tensors of the global model.
        layouts: per distinct storage layout, one dtype per tensor; the updates refer to them by index.
        bounds: the shard table (see `shard_bounds`); a tree's has one shard, the whole model.
        architecture: one of ARCHITECTURES.
        revision: how often the round was planned anew, without clients whose updates turned out to be bad.
        excluded: those clients, and those that were left out when the round closed, in ascending client id.
        norms: one of NORMS.
    """

    round_id: str
    model: str
    participants: tuple[Participant, ...]
    table: TensorTable
    layouts: tuple[tuple[str, ...], ...]
    bounds: tuple[int, ...]
    output: Output
    created_at: float
    architecture: str = GRADS_SHARDING
    revision: int = 0
    excluded: tuple[Exclusion, ...] = ()
    norms: str = "results"

    def shard_key(self, shard: int) -> str:
        """Key of one shard's object, where shards are objects."""
        return shard_key(self.round_id, shard, self.shards, self.revision)

    @property
    def shards(self) -> int:
        """M."""
        return len(self.bounds) - 1

    @cached_property
    def total_examples(self) -> int:
        """Sum of the weights."""
        return sum(p.num_examples for p in self.participants)

    @cached_property
    def layout_tables(self) -> tuple[TensorTable, ...]:
        """The tensor table as each layout stores it."""
        return tuple(self.table.with_dtypes(dtypes) for dtypes in self.layouts)

    def shard_nbytes(self, shard: int) -> int:
        """Bytes of one averaged shard, without the file header that part 1 carries in front."""
        return self.table.byte_at(self.bounds[shard + 1]) - self.table.byte_at(self.bounds[shard])

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "schema": SCHEMA,
                "round_id": self.round_id,
                "model": self.model,
                "participants": [asdict(p) for p in self.participants],
                "tensors": self.table.to_json(),
                "tensors_sha256": self.table.sha256,
                "layouts": [list(dtypes) for dtypes in self.layouts],
                "bounds": list(self.bounds),
                "output": asdict(self.output),
                "created_at": self.created_at,
                "architecture": self.architecture,
                "revision": self.revision,
                "excluded": [asdict(e) for e in self.excluded],
                "norms": self.norms,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> RoundManifest:
        """Parse and check a manifest: whatever contradicts itself raises InvalidContract."""
        f = Fields.parse("Manifest", data)
        what = f"Manifest of round {f.name('round_id', 'round')}"
        table = TensorTable.from_json(what, f.array("tensors"))
        if f.digest("tensors_sha256") != table.sha256:
            raise InvalidContract(f"{what}: tensors_sha256 does not match the tensor table.")
        layouts = []
        for row in f.array("layouts"):
            if (
                not isinstance(row, list)
                or len(row) != len(table.tensors)
                or any(not isinstance(d, str) or d not in ITEMSIZE for d in row)
            ):
                raise InvalidContract(f"{what}: layouts: expected one averaged dtype for each of the tensors.")
            layouts.append(tuple(row))
        out = f.object("output")
        output = Output(out.choice("kind", ("multipart", "objects")), out.text("key"), out.optional_text("upload_id"))
        if (output.kind == "multipart") != (output.upload_id is not None):
            raise InvalidContract(f"{what}: output: a multipart upload, and nothing else, has an upload_id.")
        manifest = cls(
            round_id=f.text("round_id"),
            model=f.name("model", "model"),
            participants=tuple(
                Participant(
                    client=p.name("client", "client id"),
                    key=p.text("key"),
                    etag=p.text("etag"),
                    size=p.integer("size", 0, _MAX_INT),
                    data_offset=p.integer("data_offset", 8, _MAX_INT),
                    num_examples=p.integer("num_examples", 1, MAX_EXAMPLES),
                    header_sha256=p.digest("header_sha256"),
                    data_sha256=p.optional_digest("data_sha256"),
                    layout=p.integer("layout", 0, len(layouts) - 1),
                )
                for p in f.objects("participants")
            ),
            table=table,
            layouts=tuple(layouts),
            bounds=f.integers("bounds"),
            output=output,
            created_at=f.number("created_at"),
            architecture=f.choice("architecture", ARCHITECTURES),
            revision=f.integer("revision", 0, MAX_CLIENTS),
            excluded=tuple(Exclusion.from_fields(e) for e in f.objects("excluded")),
            norms=f.choice("norms", NORMS),
        )
        manifest._check(what)
        return manifest

    def _check(self, what: str) -> None:
        if not 1 <= len(self.participants) <= MAX_CLIENTS:
            raise InvalidContract(f"{what}: {len(self.participants)} participants; expected 1 to {MAX_CLIENTS}.")
        clients = [p.client for p in self.participants]
        if any(a >= b for a, b in itertools.pairwise(clients)):
            raise InvalidContract(f"{what}: the participants are not in ascending client id.")
        sizes = [t.nbytes for t in self.layout_tables]
        left_out = [e.client for e in self.excluded]
        if any(a >= b for a, b in itertools.pairwise(left_out)) or not set(left_out).isdisjoint(clients):
            raise InvalidContract(f"{what}: the excluded clients are not in ascending id, or take part.")
        for p in self.participants:
            if p.size != p.data_offset + sizes[p.layout]:
                raise InvalidContract(
                    f"{what}: client {p.client}: {p.size} bytes, but header and tensors take "
                    f"{p.data_offset + sizes[p.layout]}."
                )
            if not p.key.startswith(rounds_prefix()) or client_of(p.key) != p.client:
                raise InvalidContract(f"{what}: client {p.client}: {shown(p.key)} is not the key of its update.")
        if self.output.key != global_key(self.model, self.round_id):
            raise InvalidContract(f"{what}: output key {shown(self.output.key)} is not this round's.")
        bounds = self.bounds
        if not 2 <= len(bounds) <= MAX_SHARDS + 1:
            raise InvalidContract(f"{what}: {len(bounds) - 1} shards; expected 1 to {MAX_SHARDS}.")
        if bounds[0] != 0 or bounds[-1] != self.table.elements or any(a > b for a, b in itertools.pairwise(bounds)):
            raise InvalidContract(
                f"{what}: the shard bounds do not cover the {self.table.elements} values exactly once."
            )
        if self.architecture == GRADS_SHARDING and any(
            self.shard_nbytes(m) > MAX_PART_BYTES for m in range(self.shards)
        ):
            raise InvalidContract(f"{what}: a shard of more than {MAX_PART_BYTES} bytes, more than any part can have.")
        if self.architecture != GRADS_SHARDING and self.shards != 1:
            raise InvalidContract(f"{what}: {self.shards} shards, but {self.architecture} averages whole models.")


# --- job and result messages ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardJob:
    """The SQS message that asks a worker for one shard. It points; the manifest describes.

    Attributes:
        attempt: 0 when first queued; more when queued again. A worker that sees more than 0, or a redelivery, looks
            first whether the shard is already there.
    """

    round_id: str
    manifest_sha256: str
    shard: int
    attempt: int = 0

    def to_json(self) -> str:
        return canonical_json({"schema": SCHEMA, **asdict(self)}).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardJob:
        f = Fields.parse("Shard job", text)
        return cls(
            round_id=f.name("round_id", "round"),
            manifest_sha256=f.digest("manifest_sha256"),
            shard=f.integer("shard", 0, MAX_SHARDS - 1),
            attempt=f.integer("attempt", 0, 1_000_000),
        )


@dataclass(frozen=True)
class ShardStats:
    """What one shard took: bytes, seconds, MiB and counts."""

    bytes_read: int = 0
    bytes_written: int = 0
    read_s: float = 0.0
    compute_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0
    gets: int = 0
    puts: int = 0
    retries: int = 0


RESULT_STATUSES = ("done", "failed", "retrying", "missing")


@dataclass(frozen=True)
class ShardResult:
    """The SQS message a worker sends when it is through with a job.

    Attributes:
        status: `done`; `failed`: no delivery of this job can succeed (bad update); `retrying`: the queue will
            deliver the job again; `missing`: an aggregator's inputs cannot be had where it ran.
        etag, sha256: of the written part or object (part 1 has the file header in front).
        error: what went wrong, a sentence; `client` names the client at fault where there is one.
        receive_count: how often SQS had delivered the job.
        worker: who ran it (function name and request id, or host and process).
        level, aggregator: in a tree, whose result it is; None for a shard's.
        segment: the shared memory that holds an aggregator's partial sum; None where it is in S3.
        bad: with `failed`, the clients whose updates cannot be averaged, as far as this worker has seen.
        norms: per participant the sum of the squares of its floating-point values in this shard, float64,
            little-endian, in base64; None where they are in S3 (the manifest's `norms`), or not known.
        missing: which aggregators of the level below left partial sums that this one cannot read.
    """

    round_id: str
    manifest_sha256: str
    shard: int
    status: str
    etag: str | None = None
    sha256: str | None = None
    error_kind: str | None = None
    error: str | None = None
    client: str | None = None
    receive_count: int = 1
    worker: str = ""
    memory_mb: int = 0
    stats: ShardStats = field(default_factory=ShardStats)
    level: int | None = None
    aggregator: int | None = None
    segment: str | None = None
    missing: tuple[int, ...] = ()
    bad: tuple[Exclusion, ...] = ()
    norms: str | None = None

    def to_json(self) -> str:
        return canonical_json({"schema": SCHEMA, **asdict(self)}).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardResult:
        f = Fields.parse("Shard result", text)
        stats = f.object("stats")
        return cls(
            round_id=f.name("round_id", "round"),
            manifest_sha256=f.digest("manifest_sha256"),
            shard=f.integer("shard", 0, MAX_SHARDS - 1),
            status=f.choice("status", RESULT_STATUSES),
            etag=f.optional_text("etag"),
            sha256=f.optional_digest("sha256"),
            error_kind=f.optional_text("error_kind"),
            error=f.optional_text("error"),
            client=f.optional_text("client"),
            receive_count=f.integer("receive_count", 1, 1_000_000),
            worker=f.text("worker"),
            memory_mb=f.integer("memory_mb", 0, 1_000_000),
            stats=ShardStats(
                bytes_read=stats.integer("bytes_read", 0, _MAX_INT),
                bytes_written=stats.integer("bytes_written", 0, _MAX_INT),
                read_s=stats.number("read_s"),
                compute_s=stats.number("compute_s"),
                write_s=stats.number("write_s"),
                wall_s=stats.number("wall_s"),
                cpu_s=stats.number("cpu_s"),
                peak_rss_mb=stats.number("peak_rss_mb"),
                gets=stats.integer("gets", 0, _MAX_INT),
                puts=stats.integer("puts", 0, _MAX_INT),
                retries=stats.integer("retries", 0, _MAX_INT),
            ),
            level=f.optional_integer("level", 0, MAX_CLIENTS),
            aggregator=f.optional_integer("aggregator", 0, MAX_CLIENTS),
            segment=f.optional_text("segment"),
            missing=f.integers("missing"),
            bad=tuple(Exclusion.from_fields(e) for e in f.objects("bad")),
            norms=f.optional_text("norms"),
        )


# --- models/<model>/latest.json ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatestModel:
    """`models/<model>/latest.json`: where a model's newest global model is.

    Attributes:
        pinned_at: when its round was pinned (the manifest's `created_at`). The pointer only moves to a round that was
            pinned later, so that a round resumed after its successor does not turn the model back.
    """

    model: str
    round_id: str
    key: str
    etag: str
    size: int
    tensors_sha256: str
    pinned_at: float
    published_at: float

    def to_bytes(self) -> bytes:
        return canonical_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> LatestModel:
        f = Fields.parse("Pointer to the latest model", data)
        return cls(
            model=f.name("model", "model"),
            round_id=f.name("round_id", "round"),
            key=f.text("key"),
            etag=f.text("etag"),
            size=f.integer("size", 0, _MAX_INT),
            tensors_sha256=f.digest("tensors_sha256"),
            pinned_at=f.number("pinned_at"),
            published_at=f.number("published_at"),
        )
