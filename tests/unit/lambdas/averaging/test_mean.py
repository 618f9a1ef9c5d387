"""The arithmetic promise, against a reference that shares nothing with the implementation: no numpy, no shards."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdas.averaging.mean import BLOCK, WeightedSum, average_shard, from_float64, to_float64
from lambdas.averaging.pacing import Pacing
from lambdas.protocol.errors import NonFiniteUpdate
from lambdas.protocol.tensor_table import ITEMSIZE
from tests.support.manifests import MemoryStreams, Update, averaged, client_name, manifest_of, table_of
from tests.support.reference import FLOATS, decode, encode
from tests.support.strategies import PACINGS, MemoryRound, memory_rounds


@settings(max_examples=400)
@given(memory_rounds(), st.integers(1, 12), PACINGS)
def test_any_number_of_shards_gives_the_bytes_of_the_reference(
    round_: MemoryRound, shards: int, pacing: Pacing
) -> None:
    assert averaged(round_.manifest(shards), MemoryStreams(round_.updates), pacing) == round_.expected()


def test_ten_thousand_shards_of_few_values_give_the_bytes_of_one() -> None:
    generator = np.random.default_rng(7)
    table = table_of(("F16", 37), ("I64", 1), ("F32", 33))
    updates = tuple(
        Update(
            generator.standard_normal(37).astype("<f2").tobytes()
            + np.int64(5 + i).tobytes()
            + generator.standard_normal(33).astype("<f4").tobytes(),
            num_examples,
        )
        for i, num_examples in enumerate((3, 1, 7))
    )
    round_ = MemoryRound(table, (("F16", "I64", "F32"),), updates)
    one, many = (averaged(round_.manifest(shards), MemoryStreams(updates)) for shards in (1, 10_000))
    assert one == many == round_.expected()


def test_the_reference_agrees_with_numpy_and_torch_where_they_have_the_dtype() -> None:
    generator = np.random.default_rng(11)
    values = generator.standard_normal(2000) * 10.0 ** generator.integers(-46, 40, 2000)
    with np.errstate(over="ignore"):
        for dtype, name in (("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2")):
            assert encode(values.tolist(), dtype) == values.astype(name).tobytes()
            finite = np.nan_to_num(values.astype(name))
            assert decode(finite.tobytes(), dtype) == finite.astype(float).tolist()
    single = values[np.abs(values) < 3e38].astype("<f4")
    assert encode(single.astype(float).tolist(), "BF16") == (
        torch.from_numpy(single).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    )


@settings(max_examples=500, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-3.3e38, max_value=3.3e38))
def test_bfloat16_is_rounded_once(value: float) -> None:
    assert from_float64(np.array([value]), "BF16").tobytes() == encode([value], "BF16")


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 0x7F7E), st.integers(-3, 3), st.booleans())
def test_bfloat16_is_right_next_to_a_tie(pattern: int, ulps: int, negative: bool) -> None:
    below, above = (decode(struct.pack("<H", p), "BF16")[0] for p in (pattern, pattern + 1))
    value = (below + above) / 2  # exact in float64
    for _ in range(abs(ulps)):
        value = math.nextafter(value, math.inf if ulps > 0 else -math.inf)
    value = -value if negative else value
    assert from_float64(np.array([value]), "BF16").tobytes() == encode([value], "BF16")


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(["F32", "F16"]), st.floats(-65000, 65000))
def test_float32_and_float16_are_rounded_once(dtype: str, value: float) -> None:
    assert from_float64(np.array([value]), dtype).tobytes() == encode([value], dtype)


def test_double_rounding_through_float32_would_be_wrong() -> None:
    # Just above the tie between two bfloat16 values; float32 rounds it onto the tie, and the tie goes to even, down.
    value = 1.0 + 2.0**-8 + 2.0**-40
    assert encode([value], "BF16") == from_float64(np.array([value]), "BF16").tobytes() == b"\x81\x3f"


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("I8", [0.5, 1.5, 2.5, -0.5, -1.5, 127.0, -128.0], [0, 2, 2, 0, -2, 127, -128]),
        ("U8", [0.5, 254.5, 255.0], [0, 254, 255]),
        ("I64", [2.0**63, -(2.0**63), 2.0**53 + 2], [2**63 - 1, -(2**63), 2**53 + 2]),
        ("U64", [2.0**64, 0.0], [2**64 - 1, 0]),
        ("I32", [2147483647.0, -2147483648.0, 2147483646.5], [2147483647, -2147483648, 2147483646]),
        ("BOOL", [0.0, 0.5, 0.51, 1.0], [0, 0, 1, 1]),
    ],
)
def test_integers_are_rounded_half_to_even_within_their_range(dtype, values, expected) -> None:
    raw = from_float64(np.array(values), dtype).tobytes()
    assert list(np.frombuffer(raw, {"BOOL": "u1"}.get(dtype, f"<{dtype[0].lower()}{ITEMSIZE[dtype]}"))) == expected


def test_a_bool_of_any_non_zero_byte_is_true() -> None:
    out = np.empty(4)
    to_float64(b"\x00\x01\x02\xff", "BOOL", out)
    assert out.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_negative_zeros_average_to_positive_zero() -> None:
    updates = [Update(struct.pack("<f", -0.0)), Update(struct.pack("<f", -0.0))]
    result = averaged(manifest_of(table_of(("F32", 1)), updates), MemoryStreams(updates))
    assert result == struct.pack("<f", 0.0)


def test_the_order_of_summation_is_ascending_client_id() -> None:
    # 1e16 + 1 - 1e16 is 0 in this order, 1 in another.
    values = [1e16, 1.0, -1e16, 3.0]
    updates = [Update(struct.pack("<d", v)) for v in values]
    for groups in (1, 2, 3, 64):
        result = averaged(manifest_of(table_of(("F64", 1)), updates), MemoryStreams(updates), Pacing(groups))
        assert result == struct.pack("<d", ((1e16 + 1.0) - 1e16 + 3.0) / 4)


def test_the_accumulator_is_float64() -> None:
    values = [1.0, 2.0**-30, -1.0, 2.0**-30]
    updates = [Update(struct.pack("<f", v)) for v in values]
    result = averaged(manifest_of(table_of(("F32", 1)), updates), MemoryStreams(updates))
    assert struct.unpack("<f", result)[0] == 2.0**-31


@pytest.mark.parametrize(
    ("clients", "elements"), [(1, 700_001), (5, 700_001), (64, 70_001), (65, 700_001), (200, 70_001)]
)
def test_pieces_longer_than_a_block_and_many_groups(clients: int, elements: int) -> None:
    if elements > 100_000:  # for each shard: several pieces, of several blocks, and a rest of both
        assert elements // 2 > Pacing().piece_elements > BLOCK
    rng = np.random.default_rng(clients)
    arrays = [rng.standard_normal(elements).astype("<f4") for _ in range(clients)]
    updates = [Update(a.tobytes(), int(rng.integers(1, 1000))) for a in arrays]
    expected = np.zeros(elements)
    for array, update in zip(arrays, updates, strict=True):
        expected = expected + array.astype(np.float64) * float(update.num_examples)
    mean = (expected / sum(u.num_examples for u in updates)).astype("<f4").tobytes()
    streams = MemoryStreams(updates)

    result = averaged(manifest_of(table_of(("F32", 1), ("F32", elements - 1)), updates, shards=2), streams)

    assert result == mean
    assert streams.opened == 2 * clients, "one request per client and shard"
    assert streams.most_open <= 64
    assert streams.open == 0


@pytest.mark.parametrize(("bad", "spelled"), [(math.nan, "NaN"), (math.inf, "Inf"), (-math.inf, "-Inf")])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("max_streams", [64, 2])
def test_a_non_finite_value_names_client_and_tensor(bad, spelled, dtype, max_streams) -> None:
    good = b"\0" * 9 * ITEMSIZE[dtype]
    raw = struct.pack({"F64": "<d", "F16": "<e"}.get(dtype, "<f"), bad)[-ITEMSIZE[dtype] :]
    at = 6 * ITEMSIZE[dtype]
    updates = [Update(good), Update(good[:at] + raw + good[at + len(raw) :]), Update(good)]
    streams = MemoryStreams(updates)
    manifest = manifest_of(table_of((dtype, 4), (dtype, 5)), updates)

    with pytest.raises(NonFiniteUpdate) as caught:
        averaged(manifest, streams, Pacing(max_streams=max_streams))

    assert caught.value.client == client_name(1)
    assert str(caught.value) == f"tensor 't1': client c-00001 has {spelled}"
    assert streams.open == 0


def test_infinities_that_cancel_to_nan_are_both_named() -> None:
    updates = [Update(struct.pack("<f", v)) for v in (math.inf, 1.0, -math.inf)]
    with pytest.raises(NonFiniteUpdate, match="client c-00000 has Inf, client c-00002 has -Inf"):
        averaged(manifest_of(table_of(("F32", 1)), updates), MemoryStreams(updates))


def test_many_culprits_are_counted_not_listed() -> None:
    updates = [Update(struct.pack("<f", math.nan))] * 30
    with pytest.raises(NonFiniteUpdate, match="c-00009 has NaN and 20 more clients"):
        averaged(manifest_of(table_of(("F32", 1)), updates), MemoryStreams(updates))


def test_clients_with_bad_values_in_different_tensors_of_a_piece_are_named_together() -> None:
    good, nan = struct.pack("<2f", 1.0, 2.0), math.nan
    bodies = [good + good, struct.pack("<4f", 1, 2, nan, 4), struct.pack("<4f", 1, math.inf, 3, 4), good + good]
    updates = [Update(body) for body in bodies]
    streams = MemoryStreams(updates)
    with pytest.raises(NonFiniteUpdate) as caught:
        averaged(manifest_of(table_of(("F32", 2), ("F32", 2)), updates), streams)
    assert str(caught.value) == "tensor 't1': client c-00001 has NaN; tensor 't0': client c-00002 has Inf"
    assert [(e.client, str(e)) for e in caught.value.each] == [
        ("c-00001", "tensor 't1': client c-00001 has NaN"),
        ("c-00002", "tensor 't0': client c-00002 has Inf"),
    ]
    assert streams.open == 0


def test_the_norm_of_a_shard_of_several_pieces_counts_every_value_once() -> None:
    values = np.random.default_rng(3).standard_normal(700_001).astype("<f4")
    updates = [Update(values.tobytes(), 7), Update(bytes(values.nbytes), 2)]
    manifest = manifest_of(table_of(("F32", len(values))), updates)
    found = average_shard(manifest, 0, MemoryStreams(updates), lambda _: None, Pacing())
    np.testing.assert_allclose(found, [np.sum(values.astype("f8") ** 2), 0.0], rtol=1e-12)


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 2, 64]), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_sums_of_squares_add_up_over_shards_to_each_clients_norm(
    clients: int, shards: int, max_streams: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    updates, norms = [], []
    for _ in range(clients):
        values = (generator.standard_normal(5000) * generator.choice([1e-3, 1.0, 1e6])).astype("<f4")
        halves = generator.standard_normal(7).astype("<f2")
        counter = generator.integers(0, 10**9, 3).astype("<i8")
        updates.append(
            Update(values.tobytes() + halves.tobytes() + counter.tobytes(), int(generator.integers(1, 10**9)))
        )
        norms.append(np.sum(values.astype("f8") ** 2) + np.sum(halves.astype("f8") ** 2))
    manifest = manifest_of(table_of(("F32", 5000), ("F16", 7), ("I64", 3)), updates, shards=shards)
    pacing = Pacing(max_streams=max_streams, piece_elements=1000, window_elements=2000, read_bytes=4096)
    found = sum(
        average_shard(manifest, shard, MemoryStreams(updates), lambda _: None, pacing) for shard in range(shards)
    )
    np.testing.assert_allclose(found, norms, rtol=1e-12)


def test_a_sum_beyond_float64_is_an_error_not_an_infinity(recwarn) -> None:
    updates = [Update(struct.pack("<d", 1.7e308))] * 2
    with pytest.raises(NonFiniteUpdate, match="the weighted sum exceeds float64") as caught:
        averaged(manifest_of(table_of(("F64", 1)), updates), MemoryStreams(updates))
    assert caught.value.client is None
    updates = [Update(struct.pack("<d", 1.0)), Update(struct.pack("<d", 1.7e308), 2)]
    with pytest.raises(NonFiniteUpdate, match=r"client c-00001 has 1.7e\+308, too large for its 2 examples") as caught:
        averaged(manifest_of(table_of(("F64", 1)), updates), MemoryStreams(updates))
    assert caught.value.client == client_name(1)
    assert not recwarn


def test_an_empty_shard_reads_and_writes_nothing() -> None:
    updates = [Update(struct.pack("<f", 1.0))]
    streams = MemoryStreams(updates)
    manifest = manifest_of(table_of(("F32", 1), ("F32", 0)), updates, shards=3)
    assert averaged(manifest, streams) == struct.pack("<f", 1.0)
    assert streams.opened == 1


def test_streams_are_closed_when_writing_fails() -> None:
    updates = [Update(struct.pack("<f", 1.0))] * 3
    streams = MemoryStreams(updates)

    def full(_: memoryview) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        average_shard(manifest_of(table_of(("F32", 1)), updates), 0, streams, full, Pacing())
    assert streams.open == 0


def test_a_weighted_sum_starts_over_after_reset() -> None:
    total = WeightedSum(4)
    for value in (3.0, 5.0):
        total.reset(1)
        total.add(0, memoryview(struct.pack("<f", value)), "F32", 2)
        assert total.mean(2.0, "F32").tobytes() == struct.pack("<f", value)
