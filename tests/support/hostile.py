"""Hostile bytes and documents: generated freely, or by changing valid ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from lambdas.protocol.errors import FederationError
from lambdas.protocol.safetensors import serialize_header
from tests.support.manifests import table_of

# How many cases ran, by target.
COUNTS: Counter[str] = Counter()

# A valid table, its metadata, and the beginning of the file that has them.
TABLE = table_of(("F32", 7), ("BF16", 3), ("I64", 0), ("U8", 5))
METADATA = {"num_examples": "12", "format": "pt", "data_sha256": "ab" * 32, "original_dtypes": '{"t1":"F32"}'}
FILE = serialize_header(TABLE, METADATA)

# An error message shortens what it quotes from the input.
MESSAGE_LIMIT = 4_000


def survives(target: str, call: Callable[[], Any]) -> Any:
    """Run one case. It returns, or it raises a FederationError whose message any terminal can print."""
    COUNTS[target] += 1
    try:
        return call()
    except FederationError as error:
        message = str(error)
        message.encode()  # printing half a surrogate pair would raise an error
        assert 0 < len(message) < MESSAGE_LIMIT, message[:200]
        assert "\x1b" not in message, "an escape sequence would reach the terminal"
        return None


# --- values --------------------------------------------------------------------------------------------------------

_NAMES = ["", "a", "../x", "a/b", "a" * 200, "\x00", "\x1b[2J", "\ud800", "ü", "__metadata__", "constructor", "-", "."]
_NUMBERS: list[Any] = [
    0, -1, 1, 2**31, 2**53 + 1, 2**60, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400), 1e308, -0.0, 0.5, 1e400,
    float("nan"), float("-inf"),
]  # fmt: skip


def _nested(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


def values() -> st.SearchStrategy[Any]:
    """JSON values, mostly such as parsers fail on."""
    scalars = st.one_of(
        st.sampled_from([*_NUMBERS, *_NAMES, None, True, False, "9" * 5000, "a" * 5000]),
        st.integers(-(2**70), 2**70),
        st.text(max_size=20),
    )
    return st.one_of(
        scalars,
        st.lists(scalars, max_size=4),
        st.dictionaries(st.sampled_from(_NAMES), scalars, max_size=3),
        st.builds(_nested, st.sampled_from([1, 50, 400]), scalars),
    )


def dumps(document: Any) -> bytes:
    """JSON that an attacker may write: it may have NaN, half surrogate pairs, and numbers of any length."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


# --- changing something valid ----------------------------------------------------------------------------------------


def _places(value: Any) -> list[tuple[Any, Any]]:
    """The container and the key of every value in a document."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        found += [(value, key) for key in value]
    elif isinstance(value, list):
        found += [(value, index) for index in range(len(value))]
    return found + [place for container, key in list(found) for place in _places(container[key])]


@st.composite
def changed_documents(draw: Callable[..., Any], document: Any) -> bytes:
    """A valid document with one to three of its values replaced, removed, duplicated or moved."""
    result = {"": json.loads(json.dumps(document))}
    for _ in range(draw(st.integers(1, 3))):
        places = _places(result)
        container, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "move", "add"]))
        if what == "remove" and container is not result:
            del container[key]
        elif what == "double" and isinstance(container, list):
            container.insert(key, container[key])
        elif what == "move":
            other, at = places[draw(st.integers(0, len(places) - 1))]
            container[key] = json.loads(json.dumps(other[at]))
        elif what == "add" and isinstance(container[key], dict):
            container[key][draw(st.sampled_from(_NAMES))] = draw(values())
        else:
            container[key] = draw(values())
    return dumps(result[""])


@st.composite
def changed_bytes(draw: Callable[..., Any], body: bytes) -> bytes:
    """Valid bytes after one to four changes: bits flipped, bytes removed, duplicated, overwritten or cut off."""
    result = bytearray(body)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(result) - 1)))
        length = draw(st.sampled_from([1, 1, 2, 8, 40]))
        what = draw(st.sampled_from(["flip", "flip", "cut", "double", "write", "end", "copy"]))
        if what == "flip" and result:
            result[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del result[at : at + length]
        elif what == "double":
            result[at:at] = result[at : at + length] * draw(st.sampled_from([1, 3, 500]))
        elif what == "write":
            result[at : at + length] = draw(
                st.sampled_from([b"\xff" * 8, b"\0" * 8, b'"', b"{", b"[" * 2000, b"9" * 30])
            )
        elif what == "end":
            del result[at:]
        else:
            other = draw(st.integers(0, max(0, len(result) - 1)))
            result[at : at + length] = result[other : other + length]
    return bytes(result)


def hostile(document: Any) -> st.SearchStrategy[bytes]:
    """What may arrive in the place of a JSON document: changed documents, changed bytes, other JSON, other bytes."""
    return st.one_of(
        changed_documents(document),
        changed_documents(document),
        changed_bytes(dumps(document)),
        values().map(dumps),
        st.binary(max_size=60),
        st.sampled_from([b"", b"\xff\xfe{", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000]),
    )
