"""The compiled loop gives the bytes that numpy gives, whatever the values, and where it is missing numpy goes on."""

from __future__ import annotations

import logging
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdas.averaging import mean
from lambdas.averaging.fold import Fold, load
from lambdas.averaging.mean import WeightedSum
from lambdas.averaging.pacing import Pacing
from lambdas.protocol.safetensors import MAX_EXAMPLES
from orchestrator.deployment.function_zip import build, target_for
from tests.support.manifests import MemoryStreams, averaged
from tests.support.strategies import PACINGS, MemoryRound, memory_rounds

compiled = pytest.mark.skipif(sys.platform != "linux", reason="compiled for Linux, where functions run")


@pytest.fixture(scope="module")
def fold(tmp_path_factory: pytest.TempPathFactory) -> Fold:
    """The loop, as a function on this machine has it."""
    with zipfile.ZipFile(build(target_for("local"))) as archive:
        loaded = load(Path(archive.extract("lambdas/averaging/libfold.so", tmp_path_factory.mktemp("zip"))))
    assert loaded is not None
    return loaded


def added(fold: Fold | None, before: np.ndarray, values: np.ndarray, weight: int, at: int) -> tuple[bytes, float]:
    """What a WeightedSum of `before` becomes when it adds weight * values at index `at`, and the sum of squares."""
    sums = before.copy()
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(mean, "_fold_float32", fold)
        squares = WeightedSum(len(sums), sums).add(at, memoryview(values.tobytes()), "F32", weight)
    return sums.tobytes(), squares


float32_bits = st.integers(0, 2**32 - 1).filter(lambda bits: bits >> 23 & 0xFF != 0xFF)  # finite, subnormal too


@compiled
@settings(max_examples=300, deadline=None)
@given(
    st.lists(float32_bits, max_size=40),
    st.integers(1, MAX_EXAMPLES),
    st.integers(0, 9),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_the_sums_have_numpys_bits(fold: Fold, bits: list[int], weight: int, at: int, start: float) -> None:
    values = np.array(bits, dtype="<u4").view("<f4")
    before = np.full(at + len(bits) + 3, start)

    sums, squares = added(fold, before, values, weight, at)

    expected, expected_squares = added(None, before, values, weight, at)
    assert sums == expected
    assert squares == pytest.approx(expected_squares, rel=1e-12, abs=0)


@compiled
@settings(max_examples=200, deadline=None)
@given(memory_rounds(), st.integers(1, 6), PACINGS)
def test_a_round_averaged_by_it_has_the_references_bytes(
    fold: Fold, round_: MemoryRound, shards: int, pacing: Pacing
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mean, "_fold_float32", fold)
        assert averaged(round_.manifest(shards), MemoryStreams(round_.updates), pacing) == round_.expected()


@compiled
def test_nan_and_infinity_reach_the_sums(fold: Fold) -> None:
    values = np.array([1, math.nan, math.inf, -math.inf] * 5, dtype="<f4")
    sums, squares = added(fold, np.ones(20), values, 3, 0)
    assert np.isfinite(np.frombuffer(sums)).tolist() == [True, False, False, False] * 5
    assert not math.isfinite(squares)


def read_only(sums: np.ndarray) -> np.ndarray:
    sums.flags.writeable = False
    return sums


@compiled
@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (np.zeros(3), "4 values cannot be added to 3 sums"),
        (np.zeros(8)[::2], "contiguous"),
        (np.zeros(4, dtype="<f4"), "float32 sums"),
        (np.zeros(5).view(np.uint8)[4:36].view(np.float64), "expected"),
        (read_only(np.zeros(4)), "writable"),
    ],
)
def test_it_never_writes_where_its_sums_are_not(fold: Fold, sums: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fold(memoryview(bytes(16)), 1, sums)


@compiled
def test_it_never_reads_values_that_are_not_aligned(fold: Fold) -> None:
    with pytest.raises(ValueError, match="aligned values"):
        fold(memoryview(bytearray(18))[1:17], 1, np.zeros(4))


def test_without_a_library_there_is_no_compiled_loop_and_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(tmp_path / "libfold.so") is None
    assert not caplog.records


def test_a_library_that_cannot_be_loaded_is_said_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "libfold.so").write_bytes(b"for another machine")
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path / "libfold.so") is None
    assert "Cannot load the compiled loop" in caplog.text
