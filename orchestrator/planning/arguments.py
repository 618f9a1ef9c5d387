"""Checks of the planner's arguments. Each error names the argument, its value, what is expected and the next step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lambdas.protocol.limits import MAX_CLIENTS, MAX_SHARDS
from orchestrator.errors import PlanningError
from orchestrator.planning.prices import LAMBDA_MAX_MEMORY_MB, LAMBDA_MIN_MEMORY_MB

MAX_MODEL_BYTES = 10 * 1024**4


def check_range(name: str, value: int, low: int, high: int, step: str) -> None:
    """Raise PlanningError unless `value` is an integer from `low` to `high`; `step` is the next step."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PlanningError(f"{name} is {value!r}: expected an integer from {low:,} to {high:,}. {step}")


def check_round(model_bytes: int, clients: int) -> None:
    """Raise PlanningError unless the model's size (bytes) and the number of clients are in their ranges."""
    check_range("model_bytes", model_bytes, 1, MAX_MODEL_BYTES, "Give the size of one update's tensors in bytes.")
    check_range("clients", clients, 1, MAX_CLIENTS, "Give the number of updates that one round averages.")


def check_shards(shards: int) -> None:
    """Raise PlanningError unless S3 can assemble a model from this number of shards."""
    check_range("shards", shards, 1, MAX_SHARDS, "S3 assembles a model from at most 10,000 parts.")


def check_memory(name: str, memory_mb: int, step: str = "Lambda has no other sizes.") -> None:
    """Raise PlanningError unless a function can have this much memory (MB)."""
    check_range(name, memory_mb, LAMBDA_MIN_MEMORY_MB, LAMBDA_MAX_MEMORY_MB, step)


def check_memory_cap(memory_cap_mb: int) -> None:
    """Raise PlanningError unless an account can limit its functions to this much memory (MB)."""
    check_memory("memory_cap_mb", memory_cap_mb, "See your Lambda quotas.")


def check_positive(name: str, value: float | None, unit: str) -> None:
    """Raise PlanningError unless `value` is None or a finite number above 0."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise PlanningError(f"{name} is {value!r}: expected more than 0 {unit}. Raise it or leave it out.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise PlanningError unless `value` is one of `choices`."""
    if value not in choices:
        raise PlanningError(f"{name} is {value!r}: expected one of {', '.join(choices)}.")
