"""Sizes the function of a lane by the rule of sizing.json. infra/sizing applies the same rule in Terraform."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lambdas.protocol.topologies import GRADS_SHARDING
from orchestrator.errors import PlanningError
from orchestrator.planning.prices import NEW_ACCOUNT_MEMORY_MB
from orchestrator.planning.question import check_memory, check_memory_cap, check_round, check_shards
from orchestrator.planning.shapes import Shape, shape_of
from orchestrator.planning.sizing import averaging_rate, load_sizing, rule_memory_mb, storage_mb


@dataclass(frozen=True)
class LaneSize:
    """A lane's function.

    Attributes:
        ephemeral_storage_mb: size of /tmp, to which the averaged shard is written before its upload, MB.
        expected_s: the seconds from which the timeout is derived, without the network's burst, which saves time.
    """

    shards: int
    memory_mb: int
    timeout_s: int
    ephemeral_storage_mb: int
    expected_s: float


def size_lane(
    model_bytes: int,
    clients: int,
    shards: int,
    *,
    topology: str = GRADS_SHARDING,
    memory_cap_mb: int = NEW_ACCOUNT_MEMORY_MB,
    memory_mb_override: int | None = None,
) -> LaneSize:
    """Size the function of the lane for `shards` shards, or for a tree's aggregators (`shards` is then 1).

    Args:
        model_bytes: bytes of one update's tensors.
        clients: updates averaged in one round.
        memory_cap_mb: the maximum memory of the account's functions, MB.
        memory_mb_override: function memory instead of the rule's, MB.

    Raises:
        PlanningError: no function can run it, or an argument is out of its range; names the next step.
    """
    check_round(model_bytes, clients)
    check_shards(shards)
    check_memory_cap(memory_cap_mb)
    if memory_mb_override is not None:
        check_memory("memory_mb", memory_mb_override)
    shape = shape_of(topology, model_bytes, clients, shards)
    if shape.parts != shards:
        raise PlanningError(f"{topology} averages whole models: expected 1 shard, not {shards}.")
    return size_function(shape, memory_cap_mb, memory_mb_override)


def size_function(shape: Shape, memory_cap_mb: int, memory_mb: int | None) -> LaneSize:
    """Size the functions of a shape; `memory_mb` None: by the rule.

    Raises:
        PlanningError: no function can run it; names the next step.
    """
    sizing = load_sizing()
    if memory_mb is None:
        memory_mb = rule_memory_mb(shape.clients, shape.sum_bytes)
    shape.check_memory(memory_mb, memory_cap_mb)
    rate = averaging_rate(memory_mb)
    requests_s = shape.most_inputs * sizing.cpu_seconds_per_get / (memory_mb * sizing.vcpu_per_mb)
    expected_s = (shape.most_inputs + 1) * shape.moved_bytes / rate + requests_s
    shape.check_time(expected_s, rate)
    ephemeral_storage_mb = storage_mb(shape.piece_bytes)
    if ephemeral_storage_mb > sizing.ephemeral_storage_max_mb:
        raise PlanningError(
            f"A shard of {shape.piece_bytes:,} bytes needs {ephemeral_storage_mb:,} MB of ephemeral storage, Lambda "
            f"has {sizing.ephemeral_storage_max_mb:,} MB: use more shards."
        )
    timeout_s = min(sizing.timeout_max_s, max(sizing.timeout_min_s, math.ceil(sizing.timeout_safety * expected_s)))
    return LaneSize(shape.parts, memory_mb, timeout_s, ephemeral_storage_mb, float(expected_s))
