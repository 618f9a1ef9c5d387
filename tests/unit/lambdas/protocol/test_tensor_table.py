"""Tensor tables, their digest, and how they are cut into shards."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.limits import MAX_SHARDS
from lambdas.protocol.tensor_table import ITEMSIZE, TensorSpec, TensorTable, shard_bounds
from tests.support.examples import TABLE
from tests.support.strategies import tables


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x", r"expected \[name, dtype, shape\]"),
        (["w", "F32"], r"expected \[name, dtype, shape\]"),
        (["w", "F8_E4M3", []], "dtype 'F8_E4M3' is not averaged"),
        (["w", ["F32"], []], "is not averaged"),
        (["w", "F32", [-1]], "invalid dimension"),
        (["w", "F32", [1.0]], "invalid dimension"),
        (["w", "F32", [2**40, 2**40]], "more than an object can have"),
        (["\ud800", "F32", []], "not Unicode text"),
        (["w" * 1025, "F32", []], "not Unicode text of up to 1024 characters"),
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


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidContract, match="same name"):
        TensorTable.from_json("Manifest", [["w", "F32", []], ["w", "F32", []]])


@given(tables())
def test_a_table_survives_its_json_and_equal_tables_have_equal_digests(table: TensorTable) -> None:
    again = TensorTable.from_json("Manifest", json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again.sha256 == table.sha256
    if table.tensors:
        other = TensorTable(table.tensors[:-1])
        assert other.sha256 != table.sha256


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
