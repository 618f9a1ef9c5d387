"""safetensors headers, the example count in them, and the inside of a shard, up to its averaged bytes."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from lambdas.protocol.errors import InvalidTensorFile, InvalidUpdate, TensorTableMismatch
from lambdas.protocol.limits import MAX_EXAMPLES
from lambdas.protocol.safetensors import (
    MAX_HEADER_BYTES,
    canonical_order,
    check_num_examples,
    check_same_table,
    global_header,
    header_length,
    parse_header,
    parse_update_header,
    runs,
    serialize_header,
)
from lambdas.protocol.tensor_table import ITEMSIZE, TensorSpec, TensorTable
from tests.support.strategies import MemoryRound, memory_rounds, tables


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def parse(header: Mapping[str, Any] | bytes | str, data_bytes: int = 0) -> Any:
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return parse_header(raw, 8 + len(raw) + data_bytes)


# --- the format ----------------------------------------------------------------------------------------------------


def test_a_global_models_header_is_pinned_literally() -> None:
    table = TensorTable((TensorSpec("w", "F32", (2, 3)), TensorSpec("n", "I16", ())))
    text = (
        b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
        b'"n":{"dtype":"I16","shape":[],"data_offsets":[24,26]}}'
    )
    assert len(text) == 142
    assert global_header(table) == struct.pack("<Q", 144) + text + b"  "


def test_a_header_is_padded_with_spaces_to_a_multiple_of_eight() -> None:
    for name in ("a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "äöü"):
        raw = serialize_header(TensorTable((TensorSpec(name, "U8", (1,)),)), {})
        assert len(raw) % 8 == 0
        assert parse_header(raw[8:], len(raw) + 1).table.tensors[0].name == name


@given(
    tables(), st.dictionaries(st.text(max_size=5).filter(lambda s: s.isprintable()), st.text(max_size=5), max_size=3)
)
def test_a_header_that_was_written_is_read_again(table: TensorTable, metadata: dict[str, str]) -> None:
    raw = serialize_header(table, metadata)
    header = parse_header(raw[8:], len(raw) + table.nbytes)
    assert header.table == table
    assert header.metadata == metadata
    assert header.data_offset == len(raw)
    assert header_length(raw, len(raw) + table.nbytes) == len(raw) - 8


TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@given(tables(), st.randoms(use_true_random=False))
def test_our_parser_agrees_with_the_safetensors_library_on_files_that_it_writes(
    table: TensorTable, random: Any
) -> None:
    specs = list(table.tensors)
    random.shuffle(specs)
    file = safetensors.torch.save({t.name: torch.zeros(t.shape, dtype=TORCH[t.dtype]) for t in specs}, {"a": "b"})
    length = header_length(file[:8], len(file))
    header = parse_header(file[8 : 8 + length], len(file))
    assert header.metadata == {"a": "b"}
    assert header.data_offset == len(file) - table.nbytes
    assert {t.name: t for t in header.table.tensors} == {t.name: t for t in table.tensors}
    for index, tensor in enumerate(header.table.tensors):
        assert (
            header.table.first_byte[index + 1] - header.table.first_byte[index]
            == tensor.elements * ITEMSIZE[tensor.dtype]
        )
    # The library's order is ours.
    ordered = [table.tensors[i] for i in canonical_order(table)]
    assert list(header.table.tensors) == ordered


@given(tables())
def test_files_with_our_header_open_with_the_safetensors_library(table: TensorTable) -> None:
    file = global_header(table) + bytes(table.nbytes)
    opened = safetensors.torch.load(file)
    assert {name: (tuple(t.shape), t.dtype) for name, t in opened.items()} == {
        t.name: (t.shape, TORCH[t.dtype]) for t in table.tensors
    }


@given(st.binary(max_size=200))
def test_what_the_library_refuses_we_refuse_and_never_with_another_error(data: bytes) -> None:
    file = struct.pack("<Q", len(data)) + data
    try:
        parse_header(file[8 : 8 + header_length(file, len(file))], len(file))
    except InvalidTensorFile:
        return
    # Leading white space is JSON, but no safetensors; harmless, since we write headers ourselves.
    safetensors.torch.load(struct.pack("<Q", len(data.strip())) + data.strip())


# --- files that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "size", "message"),
    [
        (b"", 0, "0 bytes long, expected at least 8"),
        (b"1234567", 7, "7 bytes long"),
        (b"epoch,loss\n1,0.5\n", 17, "announce a header of"),
        (struct.pack("<Q", 100), 107, "announce a header of 100 bytes, the file has 107"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), 10**12, "announce a header of"),
        (b"\xff" * 8, 2**62, "announce a header of 18446744073709551615 bytes"),
    ],
)
def test_a_length_that_cannot_be_true_is_refused(prefix: bytes, size: int, message: str) -> None:
    with pytest.raises(InvalidTensorFile, match=message):
        header_length(prefix, size)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ("", 0, "not JSON"),
        ("not json", 0, "not JSON"),
        (b"\xff\xfe{}", 0, "not JSON"),
        ("[]", 0, "not a JSON object"),
        ("[" * 200_000, 0, "not JSON"),
        ('{"a":' * 200_000, 0, "not JSON"),
        ('{"a":{"shape":[' + "9" * 5000 + "]}}", 0, "not JSON"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', 2,
         "a name occurs twice"),
        ('{"__metadata__":{"num_examples":"1","num_examples":"9"}}', 0, "a name occurs twice"),
        ({"a": 1}, 0, "tensor 'a': expected dtype, shape and data_offsets"),
        ({"a": entry("F8_E4M3")}, 8, "tensor 'a' has dtype 'F8_E4M3', which is not averaged; supported: F64, F32"),
        ({"a": entry(["F32"])}, 8, "which is not averaged"),
        ({"a": {**entry(), "shape": 2}}, 8, "its shape is not a list"),
        ({"a": {**entry(), "shape": "22"}}, 8, "its shape is not a list"),
        ({"a": entry(shape=[-2])}, 8, "its shape is not a list"),
        ({"a": entry(shape=[True])}, 8, "its shape is not a list"),
        ({"a": entry(shape=[2.0])}, 8, "its shape is not a list"),
        ({"a": entry(shape=[1] * 65)}, 8, "its shape is not a list"),
        ({"a": entry(shape=[2**63])}, 8, "its shape is not a list"),
        ({"a": {**entry(), "data_offsets": 8}}, 8, "data_offsets is not a pair"),
        ({"a": entry(offsets=[0, 8, 8])}, 8, "data_offsets is not a pair"),
        ({"a": entry(offsets=[-8, 0])}, 8, "data_offsets is not a pair"),
        ({"a": entry(offsets=[8, 0])}, 8, "takes 8 bytes, data_offsets span -8"),
        ({"a": entry(offsets=[0, 7])}, 7, "takes 8 bytes, data_offsets span 7"),
        ({"a": entry(shape=[2**60])}, 8, "takes 4611686018427387904 bytes, data_offsets span 8"),
        ({"a": entry(shape=[2**62] * 64)}, 8, "data_offsets span 8"),
        ({"a": entry(offsets=[8, 16])}, 16, "starts at byte 8 of the data section, expected 0.*without gaps"),
        ({"a": entry(), "b": entry(offsets=[16, 24])}, 24, "tensor 'b' starts at byte 16.*expected 8"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "tensor 'b' starts at byte 4.*expected 8"),
        ({"a": entry(), "b": entry()}, 8, "starts at byte 0.*expected 8"),
        ({"a": entry()}, 7, "truncated or padded"),
        ({"a": entry()}, 9, "truncated or padded"),
        ({}, 1, "truncated or padded"),
        ({"\ud800": entry()}, 8, "its name is not Unicode text"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__ must map strings to strings"),
        ({"__metadata__": []}, 0, "__metadata__ must map strings to strings"),
    ],
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_refused_with_what_was_expected(
    header: Any, data: int, message: str
) -> None:
    with pytest.raises(InvalidTensorFile, match=message):
        parse(header, data)


def test_a_very_long_name_does_not_flood_the_error() -> None:
    name = "x" * 100_000
    with pytest.raises(InvalidTensorFile) as caught:
        parse({name: entry("F8_E4M3")}, 8)
    assert len(str(caught.value)) < 400
    long, other = TensorTable((TensorSpec(name, "F32", (1,)),)), TensorTable((TensorSpec("y", "F32", (1,)),))
    for table, expected in ((long, other), (other, long)):
        with pytest.raises(TensorTableMismatch) as mismatch:
            check_same_table(table, expected, source="x")
        assert len(str(mismatch.value)) < 400


def test_a_header_with_more_or_longer_names_than_models_have_is_refused() -> None:
    with pytest.raises(InvalidTensorFile, match="its name is not Unicode text of up to 1024 characters"):
        parse({"x" * 1025: entry()}, 8)
    many = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(50_001)}
    with pytest.raises(InvalidTensorFile, match="its header lists 50001 tensors; at most 50000 are averaged"):
        parse(many, 0)
    with pytest.raises(InvalidTensorFile, match="the limit of a header is 16777216"):
        header_length((16 * 1024**2 + 1).to_bytes(8, "little"), 10**9)


def test_tensors_are_read_in_the_order_of_their_bytes_not_of_the_header() -> None:
    table = parse({"b": entry(offsets=[8, 16]), "empty": entry(shape=[0], offsets=[8, 8]), "a": entry()}, 16).table
    assert [t.name for t in table.tensors] == ["a", "empty", "b"]


# --- the example count ---------------------------------------------------------------------------------------------


def update(num_examples: str | None, **metadata: str) -> Any:
    said = metadata if num_examples is None else {"num_examples": num_examples, **metadata}
    raw = json.dumps({"__metadata__": said, "h": entry("BF16", [2], [0, 4])}).encode()
    return parse_update_header(raw, 8 + len(raw) + 4)


def test_an_update_says_its_example_count() -> None:
    assert update("1203").num_examples == 1203
    assert update(str(MAX_EXAMPLES)).num_examples == MAX_EXAMPLES


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "x",
        "1.5",
        "1e3",
        "--5",
        "-",
        "5-",
        "+5",
        " 5",
        "5 ",
        "5\n",
        "٣",
        "²",
        "1_000",
        "0x10",
        "nan",
        "9" * 21,
    ],
)
def test_an_update_without_a_readable_example_count_says_how_to_give_one(text: str | None) -> None:
    with pytest.raises(InvalidUpdate, match=r"has no num_examples.*orchestrator submit --examples.*or save it with"):
        update(text)


@pytest.mark.parametrize("text", ["0", "-1", "-0", "1000000001", "9" * 19])
def test_an_absurd_example_count_in_a_file_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(InvalidUpdate, match=f"an example count of {int(text)} is not a valid weight.* to 1000000000"):
        update(text)


@pytest.mark.parametrize("value", [0, -1, MAX_EXAMPLES + 1, True, 1.0, "1", None, float("nan")])
def test_a_count_that_is_no_weight_is_refused(value: Any) -> None:
    with pytest.raises(InvalidUpdate, match="is not a valid weight"):
        check_num_examples(value)


def test_a_wire_dtype_is_undone_in_the_table() -> None:
    header = update("1", original_dtypes='{"h":"F32"}')
    assert header.table.tensors == (TensorSpec("h", "F32", (2,)),)
    assert header.dtypes == ("BF16",)


@pytest.mark.parametrize(
    "text",
    ["x", "[]", '{"h":"F64"}', '{"h":["F32"]}', '{"g":"F32"}', "[" * 100_000, '{"h":"F32","g":"F32"}'],
)
def test_original_dtypes_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidTensorFile, match="original_dtypes"):
        update("1", original_dtypes=text)


# --- the same table ------------------------------------------------------------------------------------------------

MODEL = TensorTable((TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (3, 1))))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", "F32", (2,))], "tensor 'b' is missing; r-0 has it"),
        ([("a", "F32", (2,)), ("b", "F32", (3, 1)), ("c", "F32", ())], "tensor 'c' is unknown; r-0 does not have it"),
        ([("a", "F32", (2,)), ("b", "F32", (1, 3))], r"tensor 'b' has shape \[1, 3\], expected \[3, 1\] as in r-0"),
        ([("a", "F16", (2,)), ("b", "F32", (3, 1))], "tensor 'a' is F16, expected F32 as in r-0"),
        ([("b", "F32", (3, 1)), ("a", "F32", (2,))], "another order.*save it again with `orchestrator submit`"),
    ],
)
def test_a_table_that_differs_from_the_rounds_is_refused_by_its_first_difference(tensors: Any, message: str) -> None:
    with pytest.raises(TensorTableMismatch, match=message):
        check_same_table(TensorTable(tuple(TensorSpec(*t) for t in tensors)), MODEL, source="r-0")


def test_an_equal_table_is_accepted() -> None:
    check_same_table(TensorTable(tuple(MODEL.tensors)), MODEL, source="r-0")


@given(tables(), st.randoms(use_true_random=False))
def test_the_canonical_order_does_not_depend_on_the_order_of_the_state_dict(table: TensorTable, random: Any) -> None:
    shuffled = list(table.tensors)
    random.shuffle(shuffled)
    other = TensorTable(tuple(shuffled))
    assert [other.tensors[i] for i in canonical_order(other)] == [table.tensors[i] for i in canonical_order(table)]


# --- the inside of a shard -----------------------------------------------------------------------------------------


@given(memory_rounds(), st.integers(1, 20))
def test_runs_cover_each_shard_exactly_once_with_the_right_dtypes(round_: MemoryRound, shards: int) -> None:
    manifest = round_.manifest(shards)
    for start, stop in itertools.pairwise(manifest.bounds):
        found = list(runs(manifest, start, stop))
        assert [i for run in found for i in range(run.start, run.stop)] == list(range(start, stop))
        for run in found:
            for i in range(run.start, run.stop):
                tensor = manifest.table.tensor_at(i)
                assert run.dtype == manifest.table.tensors[tensor].dtype
                assert run.stored == tuple(layout[tensor] for layout in manifest.layouts)
        for a, b in itertools.pairwise(found):
            assert (a.dtype, a.stored) != (b.dtype, b.stored), "runs are as long as they can be"
