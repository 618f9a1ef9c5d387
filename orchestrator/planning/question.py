"""What the planner is asked: the round, the account that runs it, and the configurations to consider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES
from orchestrator.errors import PlanningError
from orchestrator.planning import prices
from orchestrator.planning.arguments import (
    check_choice,
    check_memory,
    check_memory_cap,
    check_positive,
    check_range,
    check_round,
    check_shards,
)

CPU_ARCHITECTURES = tuple(prices.LAMBDA_USD_PER_GB_S)
STREAMING, WHOLE_OBJECT = "streaming", "whole-object"
PROFILES = (STREAMING, WHOLE_OBJECT)


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
