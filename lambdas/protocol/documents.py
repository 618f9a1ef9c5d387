"""The contracts of a round: object keys, manifest, job and result. Standard library only.

Both sides import this module, and the function zip ships it under the same import path, so that a key or a field is
spelled in one place. Documents are canonical JSON (sorted keys, no spaces, UTF-8); a document's SHA-256 is the
SHA-256 of those bytes. Everything that arrives is parsed here, strictly, into the dataclasses below; whatever does
not have the documented form raises InvalidContract, which names the document and the field.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lambdas.protocol.errors import InvalidContract, InvalidName, shown
from lambdas.protocol.keys import check_name
from lambdas.protocol.limits import MAX_INT

SCHEMA = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INT


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
    def parse(cls, what: str, data: bytes | str, schema: int = SCHEMA) -> Fields:
        """Parse JSON text; anything else than an object of this schema raises InvalidContract."""
        try:
            fields = cls(what, json.loads(data))
        except (ValueError, RecursionError) as error:
            raise InvalidContract(f"{what}: not JSON ({type(error).__name__}: {error}).") from error
        found = fields._value.get("schema")
        if type(found) is not int or found != schema:
            raise InvalidContract(
                f"{what}: schema is {shown(found)}, this version reads {schema}. Deploy and run the same release, and "
                "finish rounds of an older release with that release."
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
