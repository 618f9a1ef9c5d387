"""Names, keys, documents and shard bounds: what both sides of a round agree on."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import FederationError, InvalidContract, InvalidName
from lambdas.protocol.keys import (
    check_name,
    client_of,
    global_key,
    latest_key,
    manifest_key,
    report_key,
    round_key,
    shard_key,
    update_key,
    updates_prefix,
)
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.limits import MAX_SHARDS
from lambdas.protocol.manifest import Exclusion, Output, Participant, RoundManifest
from lambdas.protocol.messages import ShardJob, ShardResult, ShardStats
from lambdas.protocol.tensor_table import ITEMSIZE, TensorSpec, TensorTable, shard_bounds
from tests.support.strategies import tables

DIGEST = "0123456789abcdef" * 4
TABLE = TensorTable((TensorSpec("w", "F32", (2, 3)), TensorSpec("b", "BF16", (5,)), TensorSpec("n", "I64", ())))


def a_manifest(**changes: Any) -> RoundManifest:
    values: dict[str, Any] = {
        "round_id": "r-1",
        "model": "digits",
        "participants": (
            Participant("a", "rounds/r-1/updates/a.safetensors", '"e1"', 142, 100, 3, DIGEST, "ab" * 32, 0),
            Participant("b", "rounds/r-1/updates/b.safetensors", '"e2"', 130, 100, 1, DIGEST, None, 1),
        ),
        "table": TABLE,
        "layouts": (("F32", "BF16", "I64"), ("F16", "BF16", "I64")),
        "bounds": (0, 5, 12),
        "output": Output("multipart", "models/digits/r-1/global.safetensors", "upload-7"),
        "created_at": 1767225600.5,
        "revision": 1,
        "excluded": (Exclusion("c", "NonFiniteUpdate", "has NaN"),),
        "norms": "objects",
        **changes,
    }
    return RoundManifest(**values)


# --- names and keys ------------------------------------------------------------------------------------------------


def test_keys_are_pinned_literally() -> None:
    assert round_key("r-1") == "rounds/r-1/round.json"
    assert update_key("r-1", "hospital-7") == "rounds/r-1/updates/hospital-7.safetensors"
    assert manifest_key("r-1") == "rounds/r-1/manifest.json"
    assert report_key("r-1") == "rounds/r-1/report.json"
    assert shard_key("r-1", 3, 16) == "rounds/r-1/shards/r0/00003-of-00016"
    assert global_key("digits", "r-1") == "models/digits/r-1/global.safetensors"
    assert latest_key("digits") == "models/digits/latest.json"


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "..", ".", "a.b", "../up", "a b", "ümlaut", "名前", "-a", "_a", "a\n", "a" * 129, "a" * 300, "a\x00b"],
)  # fmt: skip
def test_a_name_that_cannot_be_part_of_a_key_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(InvalidName, match=r"1 to 128 letters, digits, '-' or '_'.*Choose another client id"):
        check_name("client id", name)
    for key in (lambda: update_key("r-1", name), lambda: update_key(name, "a"), lambda: global_key(name, "r-1")):
        with pytest.raises(InvalidName):
            key()


def test_the_error_of_a_very_long_name_stays_short() -> None:
    with pytest.raises(InvalidName) as caught:
        check_name("client id", "a" * 100_000)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"]])
def test_a_name_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(InvalidName):
        check_name("round", value)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", fullmatch=True))
def test_every_allowed_client_id_is_found_again_in_its_key(client: str) -> None:
    assert client_of(update_key("r-1", client)) == client
    assert update_key("r-1", client).startswith(updates_prefix("r-1"))


@pytest.mark.parametrize("key", ["rounds/r-1/updates/a", "rounds/r-1/updates/a.txt", "rounds/r-1/updates/.safetensors"])
def test_an_object_that_is_no_update_has_no_client(key: str) -> None:
    with pytest.raises(InvalidName):
        client_of(key)


# --- stored bytes --------------------------------------------------------------------------------------------------

MANIFEST_JSON = (
    '{"bounds":[0,5,12],"created_at":1767225600.5,'
    '"excluded":[{"client":"c","kind":"NonFiniteUpdate","reason":"has NaN"}],'
    '"layouts":[["F32","BF16","I64"],["F16","BF16","I64"]],'
    '"model":"digits","norms":"objects","output":{"key":"models/digits/r-1/global.safetensors","kind":"multipart",'
    '"upload_id":"upload-7"},"participants":[{"client":"a","data_offset":100,"data_sha256":"' + "ab" * 32 + '",'
    '"etag":"\\"e1\\"","header_sha256":"' + DIGEST + '","key":"rounds/r-1/updates/a.safetensors","layout":0,'
    '"num_examples":3,"size":142},{"client":"b",'
    '"data_offset":100,"data_sha256":null,"etag":"\\"e2\\"","header_sha256":"' + DIGEST + '",'
    '"key":"rounds/r-1/updates/b.safetensors","layout":1,"num_examples":1,"size":130}],'
    '"revision":1,"round_id":"r-1","schema":2,"tensors":[["w","F32",[2,3]],["b","BF16",[5]],["n","I64",[]]],'
    '"tensors_sha256":"52ff543f280b796d7c39af6c65f86c3947eb9ee2d2e4110e218f9b8511193115","topology":"grads-sharding"}'
)


def test_a_manifests_json_is_pinned_literally() -> None:
    assert a_manifest().to_bytes().decode() == MANIFEST_JSON
    assert RoundManifest.from_bytes(MANIFEST_JSON.encode()) == a_manifest()


def test_a_jobs_json_is_pinned_literally() -> None:
    text = '{"attempt":2,"manifest_sha256":"' + DIGEST + '","round_id":"r-1","schema":1,"shard":3}'
    assert ShardJob("r-1", DIGEST, 3, 2).to_json() == text
    assert ShardJob.from_json(text) == ShardJob("r-1", DIGEST, 3, 2)


def test_a_results_json_is_pinned_literally() -> None:
    result = ShardResult(
        round_id="r-1", manifest_sha256=DIGEST, shard=3, status="done", etag='"e"', sha256=DIGEST, receive_count=2,
        worker="f/1", memory_mb=256,
        stats=ShardStats(10, 5, 0.5, 0.25, 0.125, 1.0, 0.75, 64.5, 3, 1, 0),
    )  # fmt: skip
    text = (
        '{"bad":[],"client":null,"error":null,"error_kind":null,"etag":"\\"e\\"",'
        '"manifest_sha256":"' + DIGEST + '",'
        '"memory_mb":256,"norms":null,"receive_count":2,"round_id":"r-1","schema":1,'
        '"sha256":"' + DIGEST + '","shard":3,"stats":'
        '{"bytes_read":10,"bytes_written":5,"compute_s":0.25,"cpu_s":0.75,"gets":3,"peak_rss_mb":64.5,"puts":1,'
        '"read_s":0.5,"retries":0,"wall_s":1.0,"write_s":0.125},"status":"done","worker":"f/1"}'
    )
    assert result.to_json() == text
    assert ShardResult.from_json(text) == result


def test_the_latest_pointer_is_pinned_literally() -> None:
    latest = LatestModel("digits", "r-1", "models/digits/r-1/global.safetensors", '"e"', 9, DIGEST, 1.5, 2.5)
    assert latest.to_bytes().decode() == (
        '{"etag":"\\"e\\"","key":"models/digits/r-1/global.safetensors","model":"digits","pinned_at":1.5,'
        '"published_at":2.5,"round_id":"r-1","schema":1,"size":9,"tensors_sha256":"' + DIGEST + '"}'
    )
    assert LatestModel.from_bytes(latest.to_bytes()) == latest


def test_a_job_message_stays_far_below_the_limit_of_a_queue() -> None:
    assert len(ShardJob("r" * 128, DIGEST, MAX_SHARDS - 1, 1_000_000).to_json()) < 1024


# --- strict parsing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors_sha256": "0" * 64}, "tensors_sha256 does not match"),
        ({"participants": []}, "0 participants; expected 1 to"),
        ({"bounds": [0, 5, 11]}, "do not cover the 12 values exactly once"),
        ({"bounds": [1, 5, 12]}, "do not cover"),
        ({"bounds": [0, 7, 5, 12]}, "do not cover"),
        ({"bounds": [0]}, "0 shards"),
        ({"revision": -1}, "revision"),
        ({"norms": "nowhere"}, "norms"),
        (
            {"excluded": [{"client": "a", "kind": "k", "reason": "r"}]},
            "excluded clients are not in ascending id, or take",
        ),
        ({"excluded": [{"client": c, "kind": "k", "reason": "r"} for c in "dc"]}, "not in ascending id"),
        ({"excluded": [{"client": "c", "kind": "k"}]}, "reason"),
        ({"bounds": [0, True, 12]}, "an array of integers"),
        ({"layouts": [["F32", "BF16"], ["F16", "BF16"]]}, "one averaged dtype for each of the tensors"),
        ({"layouts": [["F32", "BF16", ["I64"]], ["F16", "BF16", "I64"]]}, "one averaged dtype for each"),
        ({"layouts": [["F32", "BF16", "I64"]]}, "field 'layout': expected an integer from 0 to 0, found 1"),
        ({"output": {"kind": "objects", "key": "models/digits/r-1/global.safetensors", "upload_id": "x"}}, "upload_id"),
        ({"output": {"kind": "multipart", "key": "models/digits/r-1/global.safetensors"}}, "upload_id"),
        ({"output": {"kind": "objects", "key": "models/other/r-1/global.safetensors"}}, "is not this round's"),
        ({"created_at": 10**400}, "expected a finite number"),
        ({"created_at": None}, "expected a finite number"),
        ({"topology": "star"}, "'topology': expected one of grads-sharding, lambda-fl, lifl, found 'star'"),
        ({"topology": "lifl"}, "2 shards, but lifl averages whole models"),
        ({"schema": 1}, "schema is 1, this version reads 2.*Deploy and run the same release"),
        ({"round_id": "a/b"}, "is no valid round"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_and_the_field_is_named(change: Any, message: str) -> None:
    document = {**json.loads(MANIFEST_JSON), **change}
    with pytest.raises(InvalidContract, match=message):
        RoundManifest.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 141}, "client a: 141 bytes, but header and tensors take 142"),
        ({"key": "rounds/r-1/updates/b.safetensors"}, "is not the key of its update"),
        ({"key": "models/digits/a.safetensors"}, "is not the key of its update"),
        ({"client": "z"}, "not in ascending client id"),
        ({"num_examples": 0}, "num_examples.*from 1 to 1000000000, found 0"),
        ({"num_examples": 10**9 + 1}, "num_examples"),
        ({"num_examples": True}, "num_examples"),
        ({"num_examples": 1.0}, "num_examples"),
        ({"data_offset": 7}, "data_offset"),
    ],
)
def test_a_participant_that_contradicts_itself_is_refused(change: Any, message: str) -> None:
    document = json.loads(MANIFEST_JSON)
    document["participants"][0] |= change
    with pytest.raises(InvalidContract, match=message):
        RoundManifest.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x", r"expected \[name, dtype, shape\]"),
        (["w", "F32"], r"expected \[name, dtype, shape\]"),
        (["w", "F8_E4M3", []], "dtype 'F8_E4M3' is not averaged"),
        (["w", ["F32"], []], "is not averaged"),
        (["w", "F32", [-1]], "invalid dimension"),
        (["w", "F32", [1.0]], "invalid dimension"),
        (["w", "F32", [2**40, 2**40]], "more than any object holds"),
        (["\ud800", "F32", []], "no Unicode text"),
        (["w" * 1025, "F32", []], "no Unicode text of up to 1024 characters"),
        (["w", "F32", [2**63]], "invalid dimension"),
        (["w", "F32", [1] * 65], "invalid dimension"),
        # Their product has more digits than Python prints.
        (["w", "F32", [10**400] * 12], "invalid dimension"),
    ],
)
def test_a_row_of_a_tensor_table_that_cannot_be_is_refused(row: Any, message: str) -> None:
    with pytest.raises(InvalidContract, match=message):
        TensorTable.from_json("Manifest", [row])


def test_a_table_of_more_tensors_than_any_model_has_is_refused() -> None:
    with pytest.raises(InvalidContract, match="50001 tensors; at most 50000 are averaged"):
        TensorTable.from_json("Manifest", [["w", "F32", []]] * 50_001)


def test_a_manifest_that_claims_two_to_the_sixty_values_is_refused() -> None:
    table = TensorTable((TensorSpec("w", "F32", (2**60,)),))
    participant = Participant("a", "rounds/r-1/updates/a.safetensors", '"e"', 100 + table.nbytes, 100, 3, DIGEST)
    manifest = a_manifest(table=table, participants=(participant,), layouts=(("F32",),), bounds=(0, table.elements))
    with pytest.raises(InvalidContract, match="a shard of more than 5368709120 bytes, more than any part can have"):
        RoundManifest.from_bytes(manifest.to_bytes())


@pytest.mark.parametrize(
    "read",
    [
        lambda value: ShardJob.from_json(json.dumps({"schema": value})),
        lambda value: ShardJob.from_json(json.dumps({"schema": 1, "round_id": value})),
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


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidContract, match="same name"):
        TensorTable.from_json("Manifest", [["w", "F32", []], ["w", "F32", []]])


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"schema":1', b"9" * 5000])
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    for parse in (RoundManifest.from_bytes, LatestModel.from_bytes, ShardJob.from_json):
        with pytest.raises(InvalidContract):
            parse(data)


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
                (ShardJob.from_json, ShardJob("r", DIGEST, 1).to_json()),
                (
                    ShardResult.from_json,
                    ShardResult(round_id="r", manifest_sha256=DIGEST, shard=1, status="done").to_json(),
                ),
            ]
        )
    )
    document = json.loads(text)
    path = data.draw(st.sampled_from(_paths(document)))
    with contextlib.suppress(InvalidContract):
        parse(json.dumps(_replaced(document, path, data.draw(JSON_VALUES))).encode())  # type: ignore[operator]


@given(tables())
def test_a_table_survives_its_json_and_equal_tables_have_equal_digests(table: TensorTable) -> None:
    again = TensorTable.from_json("Manifest", json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again.sha256 == table.sha256
    if table.tensors:
        other = TensorTable(table.tensors[:-1])
        assert other.sha256 != table.sha256


def test_the_manifest_digest_covers_every_field() -> None:
    changed = [
        a_manifest(created_at=1.0),
        a_manifest(bounds=(0, 12)),
        a_manifest(output=Output("multipart", "models/digits/r-1/global.safetensors", "upload-8")),
        a_manifest(participants=a_manifest().participants[:1]),
    ]
    assert len({sha256_hex(m.to_bytes()) for m in [a_manifest(), *changed]}) == 5


# --- bounds and offsets --------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(tables(), st.integers(1, 40) | st.sampled_from([1000, MAX_SHARDS]))
@example(TensorTable(()), 7)
@example(TensorTable((TensorSpec("e", "F32", (0, 3)),)), 2)
@example(TensorTable((TensorSpec("s", "F64", ()),)), MAX_SHARDS)
def test_shards_cover_every_value_exactly_once_and_differ_by_little(table: TensorTable, shards: int) -> None:
    bounds = shard_bounds(table, shards)
    assert len(bounds) == shards + 1
    assert bounds[0] == 0
    assert bounds[-1] == table.elements
    assert all(a <= b for a, b in itertools.pairwise(bounds))
    offsets = [table.byte_at(b) for b in bounds]
    assert offsets[0] == 0
    assert offsets[-1] == table.nbytes
    sizes = [b - a for a, b in itertools.pairwise(offsets)]
    # Each bound lies less than one value (at most 8 bytes) below its ideal place.
    largest = max((ITEMSIZE[t.dtype] for t in table.tensors), default=1)
    assert max(sizes) - min(sizes) < 2 * largest + 1


@given(tables())
def test_every_flat_index_has_one_tensor_and_one_offset(table: TensorTable) -> None:
    # Spelled out: walk through the table value by value.
    element = byte = 0
    for index, tensor in enumerate(table.tensors):
        for _ in range(tensor.elements):
            assert table.tensor_at(element) == index
            assert table.byte_at(element) == byte
            element += 1
            byte += ITEMSIZE[tensor.dtype]
    assert (table.elements, table.nbytes) == (element, byte)
    assert table.byte_at(element) == byte


def test_a_table_without_tensors_has_one_place_and_empty_shards() -> None:
    empty = TensorTable(())
    assert (empty.elements, empty.nbytes, empty.byte_at(0)) == (0, 0, 0)
    assert shard_bounds(empty, 3) == (0, 0, 0, 0)


def test_a_billion_values_are_cut_without_walking_through_them() -> None:
    table = TensorTable((TensorSpec("a", "BF16", (10**9,)), TensorSpec("b", "F32", (10**9,))))
    assert shard_bounds(table, 4) == (0, 750_000_000, 1_250_000_000, 1_625_000_000, 2_000_000_000)


@pytest.mark.parametrize("shards", [0, -1, MAX_SHARDS + 1])
def test_a_shard_count_that_cannot_be_is_refused(shards: int) -> None:
    with pytest.raises(InvalidContract, match=f"into {shards} shards: expected 1 to {MAX_SHARDS}"):
        shard_bounds(TABLE, shards)
