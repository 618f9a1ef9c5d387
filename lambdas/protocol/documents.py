"""JSON documents in their two directions: dataclass to canonical bytes, and bytes to a checked dataclass.

Canonical JSON has sorted keys, no spaces, UTF-8, and floats as Python's `repr` writes them. A document's SHA-256 is the
SHA-256 of those bytes. A document that does not have the form that its dataclass describes raises InvalidContract,
which names the document, the field, what was expected and what was found.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any, NoReturn, Self, TypeVar, cast

from lambdas.protocol.errors import InvalidContract, OtherSchema, shown
from lambdas.protocol.fields import Mismatch, read_object

T = TypeVar("T")


def canonical_json(document: object) -> bytes:
    """The bytes of a document, which may contain dataclasses: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=asdict
    ).encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class Document:
    """Base of the dataclasses that are stored, or sent, as canonical JSON.

    Attributes:
        WHAT: the document's name in error messages.
        SCHEMA: the schema number that this version writes and reads.
    """

    WHAT = "Document"
    SCHEMA = 1

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json({"schema": self.SCHEMA, **asdict(cast(Any, self))})

    def to_json(self) -> str:
        """Canonical JSON as text, as a message carries it."""
        return self.to_bytes().decode()

    @classmethod
    def from_bytes(cls, data: bytes | str) -> Self:
        """Parse and check JSON, or raise InvalidContract."""
        return cls.from_object(parse_object(cls.WHAT, data, cls.SCHEMA))

    @classmethod
    def from_object(cls, value: dict[str, Any]) -> Self:
        """Check parsed JSON of the right schema, or raise InvalidContract."""
        return build(cls.WHAT, cls, value)


def load_json(data: bytes | str) -> Any:
    """Parse JSON. Refuses what json.loads refuses, and also NaN, Infinity, and a name that occurs twice in an object.

    Raises:
        ValueError, RecursionError: it is not JSON, or nested too deeply.
    """
    return json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def parse_object(what: str, data: bytes | str, schema: int = 1) -> dict[str, Any]:
    """Parse a JSON object and check its schema number, and no other field.

    Raises:
        InvalidContract: the data is not a JSON object; OtherSchema if it has another schema number.
    """
    try:
        value = load_json(data)
    except (ValueError, RecursionError) as error:
        raise InvalidContract(f"{what}: not JSON ({type(error).__name__}: {error}).") from error
    if not isinstance(value, dict):
        raise InvalidContract(f"{what}: expected a JSON object, found {type(value).__name__}.")
    found = value.get("schema")
    if type(found) is not int or found != schema:
        kind = OtherSchema if type(found) is int else InvalidContract
        raise kind(
            f"{what}: schema is {shown(found)}, this version reads {schema}. Deploy and run the same release, and "
            "finish rounds of an older release with that release."
        )
    return value


def build(what: str, kind: type[T], value: object, **given: Any) -> T:
    """Make a dataclass or TypedDict from parsed JSON, by the annotations of its fields.

    Args:
        what: the document's name in error messages.
        given: values of fields that have another form in the document.

    Raises:
        InvalidContract: a field is not what its annotation says.
    """
    try:
        return cast(T, read_object(kind, value, given))
    except Mismatch as error:
        where = f"field '{error.path[1:]}': " if error.path else ""
        raise InvalidContract(f"{what}: {where}expected {error.expected}, found {shown(error.found)}.") from error
