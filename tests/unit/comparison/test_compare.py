"""The three topologies side by side, and how far two global models are apart."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from lambdas.protocol.topologies import TOPOLOGIES, TREES
from lambdas.protocol.tree import Tree
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.comparison.compare import Comparison, compare, synthetic_updates
from orchestrator.comparison.report import to_markdown, write_chart
from orchestrator.comparison.ulps import Difference, compare_models, ulps
from orchestrator.errors import BadInput
from orchestrator.workers import poll
from tests.support.rounds import objects


@given(arrays.arrays(np.float32, 8, elements=st.floats(-(2.0**126), 2.0**126, width=32)))
def test_neighbouring_floats_are_one_unit_apart_and_equal_ones_none(values: np.ndarray) -> None:
    after = np.nextafter(values, np.float32(np.inf))
    assert (ulps(values.tobytes(), values.tobytes(), "F32") == 0).all()
    assert (ulps(values.tobytes(), after.tobytes(), "F32") == 1).all()


def test_units_are_counted_across_zero_and_for_integers() -> None:
    tiny = np.float64(5e-324)
    assert ulps(np.float64(-tiny).tobytes(), tiny.tobytes(), "F64").tolist() == [2]
    assert ulps(np.float64(-0.0).tobytes(), np.float64(0.0).tobytes(), "F64").tolist() == [0]
    assert ulps(np.int64(-(2**63)).tobytes(), np.int64(2**63 - 1).tobytes(), "I64").tolist() == [2**64 - 1]


def test_models_are_compared_value_by_value(tmp_path: Path) -> None:
    first = {"w": np.array([1.0, 2.0, 3.0], dtype=np.float32), "n": np.array([4], dtype=np.int64)}
    second = {"w": np.array([1.0, np.nextafter(np.float32(2), np.float32(3)), 3.0], np.float32), "n": np.array([9])}
    save_file(first, tmp_path / "a")
    save_file(second, tmp_path / "b")
    assert compare_models(tmp_path / "a", tmp_path / "a") == Difference(4, 0, 0)
    assert compare_models(tmp_path / "a", tmp_path / "b") == Difference(4, 2, 5)
    save_file({"other": first["w"]}, tmp_path / "c")
    with pytest.raises(BadInput, match="different tensors"):
        compare_models(tmp_path / "a", tmp_path / "c")


# --- where the trees' sums are the flat sum's ------------------------------------------------------------------------


def tree_mean(values: np.ndarray, weights: list[int], tree: Tree, dtype: type) -> np.ndarray:
    """Weighted mean by partial sums of `dtype`, rounded to float32; values: (clients, elements)."""
    below = [values[c].astype(dtype) * dtype(w) for c, w in enumerate(weights)]
    for level, width in enumerate(tree.widths):
        sums = []
        for index in range(width):
            total = np.zeros(values.shape[1], dtype=dtype)
            for i in tree.inputs(level, index):
                total = total + below[i]
            sums.append(total)
        below = sums
    return (below[0] / dtype(sum(weights))).astype(np.float32)


def flat_mean(values: np.ndarray, weights: list[int], dtype: type) -> np.ndarray:
    total = np.zeros(values.shape[1], dtype=dtype)
    for c, w in enumerate(weights):
        total = total + values[c].astype(dtype) * dtype(w)
    return (total / dtype(sum(weights))).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TREES), st.integers(1, 60), st.data())
def test_where_the_sums_are_exact_in_float64_no_element_differs(name: str, n: int, data: st.DataObject) -> None:
    """Provably: values that are multiples of 2**-20 below 2**10, weights below 2**15, so every sum needs < 53 bits."""
    weights = data.draw(st.lists(st.integers(1, 2**15 - 1), min_size=n, max_size=n))
    steps = data.draw(arrays.arrays(np.int32, (n, 5), elements=st.integers(-(2**23), 2**23)))
    values = (steps * 2.0**-20).astype(np.float32)
    tree = Tree(name, n)
    assert tree_mean(values, weights, tree, np.float64).tobytes() == flat_mean(values, weights, np.float64).tobytes()


@pytest.mark.parametrize("name", TREES)
def test_float64_partial_sums_agree_in_practice_and_float32_ones_do_not(name: str) -> None:
    generator = np.random.default_rng(7)
    values = generator.standard_normal((20, 100_000), dtype=np.float32)
    weights = generator.integers(1, 3000, 20).tolist()
    tree = Tree(name, 20)
    flat = flat_mean(values, weights, np.float64)
    assert np.count_nonzero(tree_mean(values, weights, tree, np.float64) != flat) == 0
    assert np.mean(tree_mean(values, weights, tree, np.float32) != flat_mean(values, weights, np.float32)) > 0.3


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_runs_all_three_and_finds_no_element_that_differs(
    aws: AwsClients, lanes_without_functions: Deployment, tmp_path: Path
) -> None:
    deployment = lanes_without_functions
    lanes = [deployment.lane(4), *deployment.baselines.values()]
    for lane in lanes:
        threading.Thread(
            target=poll.work, args=(aws, deployment, [lane]), kwargs={"idle_exit_s": 15}, daemon=True
        ).start()
    updates = synthetic_updates(40_000, 5)
    document = compare(aws, deployment, Comparison(updates, synthetic=True, shards=4))
    assert [row["topology"] for row in document["rows"]] == list(TOPOLOGIES)
    assert [row["invocations"] for row in document["rows"]] == [4, 3, 6]
    assert [len(row["level_seconds"]) for row in document["rows"]] == [1, 2, 3]
    assert all(row["measured_usd"] is None for row in document["rows"]), "an emulator's seconds are no dollars"
    assert [(d["elements"], d["differing"]) for d in document["differences"]] == [(10_000, 0)] * 2
    assert objects(aws, deployment) == []
    text = to_markdown(document)
    assert "synthetic updates" in text
    assert "Seconds are those of the emulator" in text
    assert "0 of 10,000 elements differ." in text
    write_chart(document, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_an_topology_without_a_lane_is_a_row_with_its_reason(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    deployment = lanes_without_functions
    bare = Deployment(
        deployment.environment, deployment.region, deployment.bucket, deployment.endpoint_url,
        deployment.result_queue_url, deployment.lanes, {}, {"lifl": "Needs 9,000 MB."},
    )  # fmt: skip
    document = compare(aws, bare, Comparison(synthetic_updates(4000, 2), synthetic=True, shards=2, topologies=TREES))
    assert document["rows"] == []
    assert "infeasible: No lane for lifl: Needs 9,000 MB." in to_markdown(document)


def test_synthetic_updates_are_the_same_every_time_and_have_uneven_weights() -> None:
    first, second = synthetic_updates(4000, 3), synthetic_updates(4000, 3)
    for one, other in zip(first, second, strict=True):
        assert b"".join(one.tensors.read(0)) == b"".join(other.tensors.read(0))
    assert len({update.examples for update in first}) == 3
    assert len({b"".join(update.tensors.read(0)) for update in first}) == 3
