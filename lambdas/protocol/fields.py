"""What each field of a document must be, written once as an annotation, and the reading of JSON by these annotations.

A document is a dataclass or TypedDict whose fields are `str`, `bool`, `int`, `float`, `Annotated[..., Rule]`, another
document, `tuple[X, ...]`, `Mapping[str, X]` or `X | None`. A field is required unless its annotation allows None. Rules
of several documents stand at the end of this module, others beside the document that has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

from lambdas.protocol.errors import shown
from lambdas.protocol.keys import NAME_FORM, is_name
from lambdas.protocol.limits import MAX_CLIENTS, MAX_EXAMPLES, MAX_INT, MAX_SHARDS

_SHA256 = re.compile(r"[0-9a-f]{64}")
_Reader = Callable[[Any], Any]


class Mismatch(Exception):
    """A value is not what its field must be.

    Attributes:
        path: the field, as `.participants[0].size`; empty for the document itself.
    """

    def __init__(self, expected: str, found: object) -> None:
        super().__init__(expected, found)
        self.expected, self.found, self.path = expected, found, ""


@dataclass(frozen=True)
class Rule:
    """What a JSON value must be: a test that takes any value, and its description in words."""

    accepts: Callable[[Any], bool]
    expected: str


class _Absent:
    """Stands for the value of a field that a document does not have."""

    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def is_text(value: object) -> bool:
    """Whether a value is a string with a UTF-8 form. JSON escapes can express half a surrogate pair, which has none."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_sha256(value: object) -> bool:
    """Whether a value is a SHA-256 in lower-case hexadecimal."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def integer(minimum: int, maximum: int) -> Rule:
    """An integer from `minimum` to `maximum`, both included. JSON's true and false are not integers."""
    return Rule(lambda v: type(v) is int and minimum <= v <= maximum, f"an integer from {minimum} to {maximum}")


def one_of(choices: Collection[str]) -> Rule:
    """One of several strings."""
    return Rule(lambda v: isinstance(v, str) and v in choices, f"one of {', '.join(choices)}")


def name_of(kind: str) -> Rule:
    """A name that can be part of an object key."""
    return Rule(is_name, f"a {kind} of {NAME_FORM}")


_PLAIN: Mapping[Any, Rule] = {
    str: Rule(is_text, "a Unicode string"),
    bool: Rule(lambda v: isinstance(v, bool), "true or false"),
    int: Rule(lambda v: type(v) is int, "an integer"),
    float: Rule(_is_finite, "a finite number"),
    Any: Rule(lambda v: True, "anything"),
}


def read_object(kind: Any, value: object, given: Mapping[str, Any]) -> Any:
    """Make a dataclass or TypedDict from a JSON object; fields that it does not have are ignored.

    Args:
        given: values of fields that are not read from the object.

    Raises:
        Mismatch: the first field that is not what its annotation says.
    """
    if not isinstance(value, dict):
        raise Mismatch("a JSON object", value)
    values = dict(given)
    for name, read in _fields_of(kind):
        if name not in given:
            try:
                values[name] = read(value.get(name, _ABSENT))
            except Mismatch as error:
                error.path = f".{name}{error.path}"
                raise
    return kind(**values)


@cache
def _fields_of(kind: Any) -> list[tuple[str, _Reader]]:
    return [(name, _reader(hint)) for name, hint in get_type_hints(kind, include_extras=True).items()]


def _reader(hint: Any) -> _Reader:
    """The function that turns a JSON value into a value of the annotated type, or raises Mismatch."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN or origin is Annotated:
        return _checked(_PLAIN[hint] if hint in _PLAIN else arguments[1], float if hint is float else None)
    if is_dataclass(hint) or is_typeddict(hint):
        return lambda value: read_object(hint, value, {})
    if NoneType in arguments:
        inner = _reader(arguments[0])
        return lambda value: None if value is None or value is _ABSENT else inner(value)
    if origin is tuple:
        read_item = _reader(arguments[0])
        return lambda value: tuple(_read_items(read_item, list, value, enumerate))
    read_value = _reader(arguments[1])
    return lambda value: dict(zip(value, _read_items(read_value, dict, value, dict.items), strict=True))


def _checked(rule: Rule, convert: _Reader | None) -> _Reader:
    accepts = rule.accepts

    def read(value: Any) -> Any:
        if not accepts(value):
            raise Mismatch(rule.expected, value)
        return value if convert is None else convert(value)

    return read


def _read_items(read: _Reader, kind: type[Any], value: Any, items: Callable[[Any], Any]) -> list[Any]:
    """The items of an array or object; `items` yields each one's index or name, and the item."""
    if not isinstance(value, kind):
        raise Mismatch("an array" if kind is list else "a JSON object", value)
    result = []
    for key, item in items(value):
        try:
            result.append(read(item))
        except Mismatch as error:
            error.path = (f"[{key}]" if kind is list else f".{shown(key)[1:-1]}") + error.path
            raise
    return result


RoundId = Annotated[str, name_of("round")]
ModelName = Annotated[str, name_of("model")]
ClientId = Annotated[str, name_of("client id")]
Sha256 = Annotated[str, Rule(is_sha256, "a SHA-256 in lower-case hexadecimal")]
_SIZE = integer(0, MAX_INT)
is_size = _SIZE.accepts
Size = Annotated[int, _SIZE]  # bytes, or any other count
ShardCount = Annotated[int, integer(1, MAX_SHARDS)]
ShardIndex = Annotated[int, integer(0, MAX_SHARDS - 1)]
ClientCount = Annotated[int, integer(1, MAX_CLIENTS)]
Examples = Annotated[int, integer(1, MAX_EXAMPLES)]
