"""What the planner is asked: the round, the account that runs it, and the configurations to consider.

Errors name the argument, its value, what is expected and the next step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lambdas.protocol.limits import MAX_CLIENTS, MAX_SHARDS
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES
from orchestrator.errors import PlanningError
from orchestrator.planning import prices

CPU_ARCHITECTURES = tuple(prices.LAMBDA_USD_PER_GB_S)
STREAMING, WHOLE_OBJECT = "streaming", "whole-object"
PROFILES = (STREAMING, WHOLE_OBJECT)
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
    check_range(name, memory_mb, prices.LAMBDA_MIN_MEMORY_MB, prices.LAMBDA_MAX_MEMORY_MB, step)


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


@dataclass(frozen=True)
class Account:
    """What an AWS account allows its functions.

    Attributes:
        memory_cap_mb: the maximum memory of one function, MB.
        concurrency: functions that run at the same time; None: the profile's default.

    Raises:
        PlanningError: a field is out of its range.
    """

    memory_cap_mb: int = prices.NEW_ACCOUNT_MEMORY_MB
    concurrency: int | None = None

    def __post_init__(self) -> None:
        check_memory_cap(self.memory_cap_mb)
        if self.concurrency is not None:
            check_range("account_concurrency", self.concurrency, 1, 1_000_000, "See your Lambda quotas.")


@dataclass(frozen=True)
class Question:
    """A round, the account that runs it, and its limits.

    Attributes:
        model_bytes: bytes of one update's tensors.
        clients: updates that the round averages.
        profile: `streaming`: this project's worker, all costs included; `whole-object`: the handler of the paper
            (arXiv:2604.22072), costs counted as the paper counts them.
        deadline_s, budget_usd: limits in seconds and US dollars; a configuration that exceeds one is not feasible.

    Raises:
        PlanningError: a field is out of its range.
    """

    model_bytes: int
    clients: int
    profile: str = STREAMING
    deadline_s: float | None = None
    budget_usd: float | None = None
    account: Account = field(default_factory=Account)

    def __post_init__(self) -> None:
        check_round(self.model_bytes, self.clients)
        check_choice("profile", self.profile, PROFILES)
        check_positive("deadline_s", self.deadline_s, "seconds")
        check_positive("budget_usd", self.budget_usd, "dollars")

    @property
    def is_paper(self) -> bool:
        """Whether the paper's handler is predicted, instead of this project's worker."""
        return self.profile == WHOLE_OBJECT

    @property
    def concurrency(self) -> int:
        """Functions that run at the same time: the account's, else AWS's default, else what the paper's account had."""
        if self.account.concurrency is not None:
            return self.account.concurrency
        return prices.PAPER_CONCURRENCY if self.is_paper else prices.LAMBDA_CONCURRENCY


@dataclass(frozen=True)
class Configuration:
    """One way to run a round.

    Attributes:
        shards: M; required for grads-sharding, ignored for the trees.
        memory_mb: function memory, MB; None: by the profile's rule.
        cpu_architecture: `arm64` or `x86_64`; None: arm64, and x86_64 for the paper's handler, as in the paper.

    Raises:
        PlanningError: a field is out of its range.
    """

    shards: int | None = None
    topology: str = GRADS_SHARDING
    memory_mb: int | None = None
    cpu_architecture: str | None = None

    def __post_init__(self) -> None:
        check_choice("topology", self.topology, TOPOLOGIES)
        if self.cpu_architecture is not None:
            check_choice("cpu_architecture", self.cpu_architecture, CPU_ARCHITECTURES)
        if self.topology == GRADS_SHARDING:
            if self.shards is None:
                raise PlanningError("grads-sharding needs a shard count: expected shards from 1 to 10,000. Give one.")
            check_shards(self.shards)
        if self.memory_mb is not None:
            check_memory("memory_mb", self.memory_mb)


@dataclass(frozen=True)
class Choices:
    """The configurations to compare: every combination of these.

    Attributes:
        shard_counts: M; None: powers of two up to shards of 1 MiB.
        memories_mb: function memories, MB; None: the profile's rule, and 256 to 3,008 MB in steps.

    Raises:
        PlanningError: a field is empty.
    """

    shard_counts: Sequence[int] | None = None
    memories_mb: Sequence[int] | None = None
    cpu_architectures: Sequence[str] = CPU_ARCHITECTURES
    topologies: Sequence[str] = TOPOLOGIES

    def __post_init__(self) -> None:
        for name in ("shard_counts", "memories_mb", "cpu_architectures", "topologies"):
            values: Sequence[object] | None = getattr(self, name)
            if values is not None and not values:
                raise PlanningError(f"{name} is empty: expected at least one value. Give one, or leave it out.")
