"""How a lane's function is sized: the rule that infra/sizing applies too, from the constants of sizing.json.

Exact arithmetic, as Terraform's: both sides round up the same numbers.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources

from lambdas.protocol.limits import MAX_CLIENTS, MAX_SHARDS
from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.protocol.tree import fan_in
from orchestrator.errors import PlanningError
from orchestrator.planning.prices import (
    LAMBDA_MAX_MEMORY_MB,
    LAMBDA_MIN_MEMORY_MB,
    NEW_ACCOUNT_MEMORY_MB,
    S3_MAX_PUT_BYTES,
)

MAX_MODEL_BYTES = 10 * 1024**4


@dataclass(frozen=True)
class Sizing:
    """orchestrator/planning/sizing.json. `_mb` are MiB, as Lambda counts them; `bytes_per_s` are decimal."""

    memory_mb: int
    worker_peak_mb: int
    manifest_mb_per_1000_clients: int
    memory_step_mb: int
    tree_sum_factor: int
    vcpu_per_mb: Fraction
    cpu_seconds_per_gb: Fraction
    cpu_seconds_per_get: Fraction
    network_bytes_per_s: int
    timeout_safety: int
    timeout_min_s: int
    timeout_max_s: int
    ephemeral_storage_min_mb: int
    ephemeral_storage_max_mb: int
    ephemeral_storage_spare_mb: int

    @property
    def network(self) -> float:
        """A function's network rate after its burst, bytes per second."""
        return float(self.network_bytes_per_s)


@functools.cache
def load_sizing() -> Sizing:
    """The constants that planner and Terraform share."""
    text = resources.files("orchestrator.planning").joinpath("sizing.json").read_text(encoding="utf-8")
    document = json.loads(text, parse_float=Fraction)
    del document["about"]
    return Sizing(**document)


@dataclass(frozen=True)
class LaneSize:
    """A lane's function.

    Attributes:
        memory_mb: function memory, MB.
        timeout_s: function timeout, seconds.
        ephemeral_storage_mb: size of /tmp, where the averaged shard is spooled, MB.
        expected_s: what the timeout is derived from, seconds; without the network's burst, so rather too long.
    """

    shards: int
    memory_mb: int
    timeout_s: int
    ephemeral_storage_mb: int
    expected_s: float


def check_range(name: str, value: int, low: int, high: int, step: str) -> None:
    """Raise PlanningError unless `value` is an integer of low..high; `step` says what to do instead."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PlanningError(f"{name} is {value!r}: expected an integer from {low:,} to {high:,}. {step}")


def check_round(model_bytes: int, clients: int) -> None:
    """Raise PlanningError where a model size (bytes) or a number of clients makes no sense."""
    check_range("model_bytes", model_bytes, 1, MAX_MODEL_BYTES, "Give the size of one update's tensors in bytes.")
    check_range("clients", clients, 1, MAX_CLIENTS, "Give how many updates one round averages.")


def worker_peak_mb(clients: int, sum_bytes: int = 0) -> int:
    """Peak memory of a streaming worker, MB: pieces and the manifest, whatever the shard's size.

    Args:
        sum_bytes: what a tree's aggregator holds besides, the complete model as float64 sums.
    """
    return math.ceil(_pieces_mb(clients) + Fraction(sum_bytes, 2**20))


def rule_memory_mb(clients: int, sum_bytes: int = 0) -> int:
    """Function memory by the rule, MB: the worker's peak and a quarter, and the sums; in steps, from the minimum."""
    sizing = load_sizing()
    needed = _pieces_mb(clients) * Fraction(5, 4) + Fraction(sum_bytes, 2**20)
    return max(sizing.memory_mb, sizing.memory_step_mb * math.ceil(needed / sizing.memory_step_mb))


def _pieces_mb(clients: int) -> Fraction:
    sizing = load_sizing()
    return sizing.worker_peak_mb + Fraction(sizing.manifest_mb_per_1000_clients * clients, 1000)


def storage_mb(output_bytes: int) -> int:
    """Ephemeral storage that a function needs to spool `output_bytes` and to park sums, MB; may exceed Lambda's."""
    sizing = load_sizing()
    return max(
        sizing.ephemeral_storage_min_mb, math.ceil(Fraction(output_bytes, 2**20)) + sizing.ephemeral_storage_spare_mb
    )


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
        memory_cap_mb: the most memory that the account's functions may have, MB.
        memory_mb_override: function memory instead of the rule's, MB.

    Raises:
        PlanningError: no function can do it, or an argument is out of its range; names the next step.
    """
    check_round(model_bytes, clients)
    check_range("shards", shards, 1, MAX_SHARDS, "S3 assembles a model from at most 10,000 parts.")
    check_range("memory_cap_mb", memory_cap_mb, LAMBDA_MIN_MEMORY_MB, LAMBDA_MAX_MEMORY_MB, "See your Lambda quotas.")
    if memory_mb_override is not None:
        check_range(
            "memory_mb", memory_mb_override, LAMBDA_MIN_MEMORY_MB, LAMBDA_MAX_MEMORY_MB, "Lambda has no other sizes."
        )
    sizing = load_sizing()
    if topology != GRADS_SHARDING and shards != 1:
        raise PlanningError(f"{topology} averages whole models: expected 1 shard, not {shards}.")
    shard_bytes = -(-model_bytes // shards)
    tree = topology != GRADS_SHARDING
    sum_bytes = sizing.tree_sum_factor * model_bytes if tree else 0
    memory_mb = rule_memory_mb(clients, sum_bytes) if memory_mb_override is None else memory_mb_override
    if tree and memory_mb > memory_cap_mb:
        raise PlanningError(
            f"An aggregator of {topology} holds the complete model as float64 sums and needs {memory_mb:,} MB for "
            f"a model of {model_bytes:,} bytes, the cap is {memory_cap_mb:,} MB: use grads-sharding"
            + (", or raise the cap if the account allows it." if memory_mb <= LAMBDA_MAX_MEMORY_MB else ".")
        )
    if tree and sum_bytes > S3_MAX_PUT_BYTES:
        raise PlanningError(
            f"A float64 partial sum has {sum_bytes:,} bytes, a single PUT takes 5 GiB: use grads-sharding."
        )
    if memory_mb > memory_cap_mb:
        raise PlanningError(
            f"{clients:,} clients need functions of {memory_mb:,} MB, the cap is {memory_cap_mb:,} MB. Raise the cap "
            "(up to 10,240 MB, if the account allows it) or average fewer clients."
        )
    rate = min(Fraction(sizing.network_bytes_per_s), 10**9 * memory_mb * sizing.vcpu_per_mb / sizing.cpu_seconds_per_gb)
    # A tree's busiest aggregator reads and writes float64 sums.
    inputs, moved_bytes = (fan_in(topology, clients), sum_bytes) if tree else (clients, shard_bytes)
    requests_s = inputs * sizing.cpu_seconds_per_get / (memory_mb * sizing.vcpu_per_mb)
    expected_s = (inputs + 1) * moved_bytes / rate + requests_s
    if tree and expected_s > sizing.timeout_max_s:
        raise PlanningError(
            f"An aggregator of {topology} for {clients:,} clients and a model of {model_bytes:,} bytes takes "
            f"{math.ceil(expected_s):,} s, Lambda stops it after {sizing.timeout_max_s} s: use grads-sharding."
        )
    if expected_s > sizing.timeout_max_s:
        raise PlanningError(
            f"A shard of {shard_bytes:,} bytes from {clients:,} clients takes a function {math.ceil(expected_s):,} s "
            f"at {float(rate) / 1e6:.0f} MB/s, Lambda stops it after {sizing.timeout_max_s} s: use more shards."
        )
    ephemeral_storage_mb = storage_mb(shard_bytes)
    if ephemeral_storage_mb > sizing.ephemeral_storage_max_mb:
        raise PlanningError(
            f"A shard of {shard_bytes:,} bytes needs {ephemeral_storage_mb:,} MB of ephemeral storage, Lambda has "
            f"{sizing.ephemeral_storage_max_mb:,} MB: use more shards."
        )
    timeout_s = min(sizing.timeout_max_s, max(sizing.timeout_min_s, math.ceil(sizing.timeout_safety * expected_s)))
    return LaneSize(shards, memory_mb, timeout_s, ephemeral_storage_mb, float(expected_s))
