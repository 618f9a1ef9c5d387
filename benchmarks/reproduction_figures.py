"""The figures of docs/reproduction.md: measured, predicted, and averaged in float32."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.protocol.tree import Tree
from orchestrator.planning.planner import predict
from orchestrator.planning.prices import LAMBDA_CONCURRENCY, LAMBDA_MAX_MEMORY_MB
from orchestrator.planning.question import Account, Configuration, Question

CLIENTS = 20
SHARDS = 4
_DATA = Path(__file__).with_name("data")


def rounds() -> list[dict[str, str]]:
    """The paper's rounds as measured on AWS."""
    with (_DATA / "paper_lambda_rounds.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measured() -> dict[str, Any]:
    """The figures of benchmarks.worker."""
    document: dict[str, Any] = json.loads((_DATA / "worker.json").read_text())
    return document


def cost(model_bytes: int, topology: str, profile: str, *, all_in: bool) -> float:
    """Predicted dollars of a round of 20 clients, GradsSharding with 4 shards, no cap on memory but Lambda's."""
    shards = SHARDS if topology == GRADS_SHARDING else None
    plan = predict(
        Question(model_bytes, CLIENTS, profile, account=Account(LAMBDA_MAX_MEMORY_MB)),
        Configuration(shards, topology, cpu_architecture="x86_64"),
    )
    return plan.cost_breakdown.total if all_in else plan.cost_breakdown.paper_total


def last_true(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest x of low <= x < high for which `holds`, which is true at low and changes once."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def crossover_mb(tree: str, profile: str, *, all_in: bool) -> str:
    """From which model size (MB) on sharding is cheaper than a tree."""

    def dearer(mb: int) -> bool:
        sharded, other = (cost(mb * 10**6, a, profile, all_in=all_in) for a in (GRADS_SHARDING, tree))
        return sharded >= other

    return f"{last_true(dearer, 1, 5000) + 1:,} MB" if dearer(1) else "always"


def largest_mb(topology: str, profile: str, cap_mb: int) -> str:
    """The largest model (GB) that some feasible configuration averages."""

    def feasible(mb: int) -> bool:
        counts: tuple[int | None, ...] = (None,) if topology != GRADS_SHARDING else tuple(4**k for k in range(7))
        question = Question(mb * 10**6, CLIENTS, profile, account=Account(cap_mb, LAMBDA_CONCURRENCY))
        return any(predict(question, Configuration(shards, topology)).feasible for shards in counts)

    found = last_true(feasible, 1, 1_000_000)
    return "above 1,000 GB" if found == 999_999 else f"{found / 1000:,.1f} GB"


Float32 = npt.NDArray[np.float32]


def flat_float32(values: Sequence[Float32], weights: Sequence[int]) -> Float32:
    """The paper's handler: a float32 running sum over all clients."""
    total = np.float32(0)
    for value, weight in zip(values, weights, strict=True):
        total = total + value * np.float32(weight)
    return np.asarray(total / np.float32(sum(weights)), dtype=np.float32)


def tree(
    topology: str, values: Sequence[Float32], weights: Sequence[int], dtype: type[np.float32] | type[np.float64]
) -> Float32:
    """The mean by a tree whose aggregators hand on weighted sums of `dtype`."""
    shape = Tree(topology, len(values))
    sums = [value.astype(dtype) * dtype(weight) for value, weight in zip(values, weights, strict=True)]
    for level, width in enumerate(shape.widths):
        above = []
        for aggregator in range(width):
            total = np.zeros(len(values[0]), dtype=dtype)
            for index in shape.inputs(level, aggregator):
                total = total + sums[index]
            above.append(total)
        sums = above
    return np.asarray(sums[0] / dtype(sum(weights)), dtype=np.float32)


def differing(a: Float32, b: Float32) -> str:
    """How many elements differ, and by how many units in the last place at most."""
    different = int((a.view(np.int32) != b.view(np.int32)).sum())
    if not different:
        return f"0 of {len(a):,}"
    ordered = [
        np.where(x.view(np.int32) < 0, -(2**31) - x.view(np.int32).astype(np.int64), x.view(np.int32)) for x in (a, b)
    ]
    near = np.abs(a) > np.median(np.abs(a)) / 100  # where terms cancel, units in the last place say nothing
    return (
        f"{different:,} of {len(a):,} ({different / len(a):.0%}), by up to "
        f"{int(np.abs(ordered[0] - ordered[1])[near].max()):,} units in the last place"
    )
