"""Reading JSON: what every document refuses, and what its error says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdas.protocol.documents import build
from lambdas.protocol.errors import FederationError, InvalidContract
from lambdas.protocol.fields import Size
from lambdas.protocol.keys import (
    check_name,
    client_of,
)
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import ShardJob, ShardResult
from lambdas.protocol.tensor_table import TensorTable
from tests.support.examples import DIGEST, MANIFEST_JSON


@pytest.mark.parametrize(
    "read",
    [
        lambda value: ShardJob.from_bytes(json.dumps({"schema": value})),
        lambda value: ShardJob.from_bytes(json.dumps({"schema": 1, "round_id": value})),
        lambda value: TensorTable.from_json("Manifest", [value]),
        lambda value: TensorTable.from_json("Manifest", [[str(value), "F32", [-1]]]),
        lambda value: client_of(str(value)),
        lambda value: check_name("round", value),
    ],
)
@pytest.mark.parametrize("value", ["9" * 5000, ["9" * 5000] * 20, {"\x1b[2J" * 500: 1}, 10**4000])
def test_whatever_was_sent_the_error_is_short_and_clean(read: Any, value: Any) -> None:
    with pytest.raises(FederationError) as caught:
        read(value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"schema":1', b"9" * 5000])
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    for parse in (RoundManifest.from_bytes, LatestModel.from_bytes, ShardJob.from_bytes):
        with pytest.raises(InvalidContract):
            parse(data)


def _with(value: str) -> bytes:
    """A pointer to the latest model whose `pinned_at` is this JSON text."""
    latest = LatestModel("digits", "r-1", "key", '"e"', 9, DIGEST, 1.5, 2.5)
    return latest.to_bytes().replace(b'"pinned_at":1.5', b'"pinned_at":' + value.encode())


@pytest.mark.parametrize(("value", "number"), [("3", 3.0), ("1e-06", 1e-6), ("-0.0", -0.0)])
def test_a_number_may_be_written_as_an_integer(value: str, number: float) -> None:
    found = LatestModel.from_bytes(_with(value)).pinned_at
    assert (found, type(found)) == (number, float)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", r"^Pointer to the latest model: not JSON \(ValueError: NaN is not a JSON number\)\.$"),
        ("-Infinity", "not JSON .*-Infinity is not a JSON number"),
        ("1e999", r"^Pointer to the latest model: field 'pinned_at': expected a finite number, found inf\.$"),
        ("1" + "0" * 400, "field 'pinned_at': expected a finite number, found 1000"),
        ("1" * 5000, "not JSON"),
        ("true", "field 'pinned_at': expected a finite number, found True"),
        ('"1.5"', "field 'pinned_at': expected a finite number, found '1.5'"),
        ('1.5,"pinned_at":1.5', "not JSON .*a name occurs twice"),
    ],
)
def test_what_is_not_a_finite_number_is_refused(value: str, message: str) -> None:
    with pytest.raises(InvalidContract, match=message):
        LatestModel.from_bytes(_with(value))


def test_a_string_without_a_utf8_form_is_refused() -> None:
    data = _with("1.5").replace(b'"key":"key"', b'"key":"\\ud800"')
    with pytest.raises(InvalidContract, match=r"field 'key': expected a Unicode string, found '\\ud800'\."):
        LatestModel.from_bytes(data)


def test_a_field_that_nobody_reads_is_ignored() -> None:
    assert LatestModel.from_bytes(_with('1.5,"newer":{"a":[1e999]}')) == LatestModel.from_bytes(_with("1.5"))


def test_a_missing_field_is_told_from_null() -> None:
    for change, found in ((b"", "nothing"), (b'"etag":null,', "None")):
        with pytest.raises(InvalidContract, match=f"field 'etag': expected a Unicode string, found {found}"):
            LatestModel.from_bytes(_with("1.5").replace(b'"etag":"\\"e\\"",', change))


class _Part(TypedDict):
    size: Size


@dataclass(frozen=True)
class _Whole:
    parts: tuple[_Part, ...]
    by_name: Mapping[str, _Part]
    note: str | None = None


def test_the_path_of_a_field_leads_through_arrays_and_objects() -> None:
    good = {"parts": [{"size": 1}, {"size": 2}], "by_name": {"a": {"size": 3}}}
    assert build("Whole", _Whole, good) == _Whole(({"size": 1}, {"size": 2}), {"a": {"size": 3}})
    for change, message in (
        (
            {"parts": [{"size": 1}, {"size": -1}]},
            r"^Whole: field 'parts\[1\].size': expected an integer .*, found -1",
        ),
        ({"parts": [{"size": 1}, 7]}, r"^Whole: field 'parts\[1\]': expected a JSON object, found 7\.$"),
        ({"parts": {}}, r"^Whole: field 'parts': expected an array, found {}\.$"),
        ({"by_name": {"a": {}}}, r"^Whole: field 'by_name.a.size': expected an integer .*, found nothing\.$"),
        ({"by_name": {"\x1b" * 500: {}}}, r"^Whole: field 'by_name.[\\x1b.]+.size': expected an integer"),
        ({"note": 7}, "^Whole: field 'note': expected a Unicode string, found 7"),
    ):
        with pytest.raises(InvalidContract, match=message) as caught:
            build("Whole", _Whole, good | change)
        assert str(caught.value).isprintable()
    with pytest.raises(InvalidContract, match=r"^Whole: expected a JSON object, found \[\]\.$"):
        build("Whole", _Whole, [])


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _paths(document: Any) -> list[tuple[Any, ...]]:
    children = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [(), *((key, *path) for key, child in children for path in _paths(child))]


def _replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], value)
    return copy


@settings(max_examples=300)
@given(st.data())
def test_whatever_stands_in_a_document_it_parses_or_is_refused_as_invalid_contract(data: st.DataObject) -> None:
    parse, text = data.draw(
        st.sampled_from(
            [
                (RoundManifest.from_bytes, MANIFEST_JSON),
                (ShardJob.from_bytes, ShardJob("r", DIGEST, 1).to_json()),
                (
                    ShardResult.from_bytes,
                    ShardResult(round_id="r", manifest_sha256=DIGEST, shard=1, status="done").to_json(),
                ),
            ]
        )
    )
    document = json.loads(text)
    path = data.draw(st.sampled_from(_paths(document)))
    with contextlib.suppress(InvalidContract):
        parse(json.dumps(_replaced(document, path, data.draw(JSON_VALUES))).encode())  # type: ignore[operator]
