"""What a round will take and cost, for every configuration that could run it, and which one to choose.

The time model is in orchestrator/prediction.py, constants and prices in orchestrator/pricing.py, the sizing rule that
Terraform shares in orchestrator/sizing.py. docs/planning.md compares predictions with measured rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from lambdas.protocol.limits import MAX_SHARDS
from lambdas.protocol.topologies import TOPOLOGIES
from orchestrator.errors import PlanningError
from orchestrator.planning import prices
from orchestrator.planning.paper_model import whole_object
from orchestrator.planning.plan import Plan, format_table, mark, recommended
from orchestrator.planning.prices import CostBreakdown
from orchestrator.planning.sizing import LaneSize, check_range, check_round, size_lane
from orchestrator.planning.streaming import Question, streaming

__all__ = [
    "TOPOLOGIES", "CPUS", "PROFILES", "CostBreakdown", "DeployedLane", "LaneSize", "Plan", "choose_lane",
    "format_table", "plan_round", "predict", "size_lane",
]  # fmt: skip

CPUS = tuple(prices.LAMBDA_USD_PER_GB_S)
PROFILES = ("streaming", "whole-object")

_SHARD_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, MAX_SHARDS)
_MEMORIES_MB = (256, 512, 1024, 1769, 3008)
# Shards below this are not tried by default: a function's start-up then takes longer than its work.
_MIN_SHARD_BYTES = 1024**2


def predict(
    model_bytes: int,
    clients: int,
    *,
    topology: str = "grads-sharding",
    shards: int | None = None,
    memory_mb: int | None = None,
    cpu: str | None = None,
    profile: str = "streaming",
    deadline_s: float | None = None,
    budget_usd: float | None = None,
    memory_cap_mb: int = prices.NEW_ACCOUNT_MEMORY_MB,
    account_concurrency: int | None = None,
) -> Plan:
    """Predict one configuration.

    Args:
        model_bytes: bytes of one update's tensors.
        clients: updates in the round.
        shards: M, for grads-sharding.
        memory_mb: function memory, MB; None: by the profile's rule.
        cpu: "arm64" or "x86_64"; None: arm64, and x86_64 for whole-object, as in the paper.
        profile: "streaming", this kit's worker, all-in dollars; or "whole-object", the paper's, in its accounting.
        deadline_s, budget_usd: limits in seconds and dollars; what misses them is not feasible.
        memory_cap_mb: the most memory that the account's functions may have, MB.
        account_concurrency: how many functions run at once; None: 1,000, and 10 for whole-object, as in the paper.

    Raises:
        PlanningError: an argument is out of its range. A configuration that cannot work is a Plan with a reason.
    """
    _check(model_bytes, clients, profile, deadline_s, budget_usd, memory_cap_mb, account_concurrency)
    _check_choice("topology", topology, TOPOLOGIES)
    paper = profile == "whole-object"
    cpu = ("x86_64" if paper else "arm64") if cpu is None else cpu
    _check_choice("cpu", cpu, CPUS)
    if topology == "grads-sharding":
        if shards is None:
            raise PlanningError("grads-sharding needs a shard count: expected shards from 1 to 10,000. Give one.")
        check_range("shards", shards, 1, MAX_SHARDS, "S3 assembles a model from at most 10,000 parts.")
    if memory_mb is not None:
        _check_memory("memory_mb", memory_mb)
    if account_concurrency is None:
        account_concurrency = prices.PAPER_CONCURRENCY if paper else prices.LAMBDA_CONCURRENCY
    question = Question(
        model_bytes=model_bytes,
        clients=clients,
        topology=topology,
        shards=shards if topology == "grads-sharding" and shards is not None else 1,
        memory_mb=memory_mb,
        memory_cap_mb=memory_cap_mb,
        concurrency=account_concurrency,
    )
    found = whole_object(question) if paper else streaming(question)
    cost = CostBreakdown(
        compute_usd=prices.compute_usd(found.billed_s, found.memory_mb, cpu, found.ephemeral_storage_mb),
        function_requests_usd=found.invocations * prices.LAMBDA_USD_PER_REQUEST,
        s3_get_usd=found.s3_gets * prices.S3_GET_USD,
        s3_put_usd=found.s3_puts * prices.S3_PUT_USD,
        client_upload_usd=found.client_puts * prices.S3_PUT_USD,
        sqs_usd=found.sqs_requests * prices.SQS_USD,
    )
    usd = cost.paper_total if paper else cost.total
    reasons = list(found.obstacles)
    if deadline_s is not None and found.seconds > deadline_s:
        reasons.append(f"Takes {found.seconds:,.1f} s, the deadline is {deadline_s:g} s.")
    if budget_usd is not None and usd > budget_usd:
        reasons.append(f"Costs ${usd:.6f}, the budget is ${budget_usd:g}.")
    return Plan(
        topology=topology,
        shards=shards if topology == "grads-sharding" else None,
        memory_mb=found.memory_mb,
        cpu=cpu,
        predicted_seconds=found.seconds,
        predicted_cost_usd=usd,
        cost_breakdown=cost,
        peak_memory_mb=found.peak_memory_mb,
        invocations=found.invocations,
        s3_gets=found.s3_gets,
        s3_puts=found.s3_puts,
        client_puts=found.client_puts,
        sqs_requests=found.sqs_requests,
        feasible=not reasons,
        reason=" ".join(reasons),
    )


def plan_round(
    model_bytes: int,
    clients: int,
    *,
    profile: str = "streaming",
    deadline_s: float | None = None,
    budget_usd: float | None = None,
    shard_counts: Sequence[int] | None = None,
    memories_mb: Sequence[int] | None = None,
    cpus: Sequence[str] = CPUS,
    topologies: Sequence[str] = TOPOLOGIES,
    memory_cap_mb: int = prices.NEW_ACCOUNT_MEMORY_MB,
    account_concurrency: int | None = None,
) -> list[Plan]:
    """Predict every configuration and mark the cheapest, the fastest and the recommended of the feasible ones.

    Recommended is, with a deadline, the cheapest that meets it; without, the fastest of those that cost at most 1.25
    times the cheapest (and stay in the budget, if there is one).

    Args:
        shard_counts: M to try; None: powers of two up to shards of 1 MiB.
        memories_mb: function memories to try, MB; None: the profile's rule, and 256 to 3,008 MB in steps.
        The others: as for `predict`.

    Returns:
        Plans by topology, shards, memory, CPU; infeasible ones with their reasons.

    Raises:
        PlanningError: an argument is out of its range.
    """
    _check(model_bytes, clients, profile, deadline_s, budget_usd, memory_cap_mb, account_concurrency)
    if shard_counts is None:
        most = max(1, model_bytes // _MIN_SHARD_BYTES)
        shard_counts = [shards for shards in _SHARD_COUNTS if shards <= most]
    for name, values in (
        ("shard_counts", shard_counts), ("memories_mb", memories_mb), ("cpus", cpus), ("topologies", topologies)
    ):  # fmt: skip
        if values is not None and not values:
            raise PlanningError(f"{name} is empty: expected at least one value. Give one, or leave it out.")

    def one(topology: str, shards: int | None, memory_mb: int | None, cpu: str) -> Plan:
        return predict(
            model_bytes, clients, topology=topology, shards=shards, memory_mb=memory_mb, cpu=cpu,
            profile=profile, deadline_s=deadline_s, budget_usd=budget_usd, memory_cap_mb=memory_cap_mb,
            account_concurrency=account_concurrency,
        )  # fmt: skip

    plans = []
    for topology in dict.fromkeys(topologies):
        counts: list[int | None] = [*sorted(set(shard_counts))] if topology == "grads-sharding" else [None]
        for shards in counts:
            for memory_mb in _memories(one(topology, shards, None, cpus[0]), memories_mb, memory_cap_mb):
                plans += [one(topology, shards, memory_mb, cpu) for cpu in dict.fromkeys(cpus)]
    return mark(plans, deadline_s)


def _memories(by_rule: Plan, asked: Sequence[int] | None, memory_cap_mb: int) -> list[int | None]:
    """Function memories to try; None stands for the rule's own, so that what is wrong with it is said of the rule."""
    if asked is not None:
        return [*sorted(set(asked))]
    others = {m for m in (*_MEMORIES_MB, memory_cap_mb) if by_rule.peak_memory_mb <= m <= memory_cap_mb}
    memories = sorted(others | {by_rule.memory_mb})
    return [None if memory_mb == by_rule.memory_mb else memory_mb for memory_mb in memories]


# --- deployed lanes ------------------------------------------------------------------------------------------------


class DeployedLane(Protocol):
    """A lane as deployed: what orchestrator.deployment.Lane has. `cpu_architecture` is arm64 or x86_64.

    A lane that also has `timeout_s` and `ephemeral_storage_mb`, as deployed ones do, must have enough of them; with
    `maximum_concurrency`, no more of its functions run at once.
    """

    @property
    def shards(self) -> int:
        """Shard count."""

    @property
    def memory_mb(self) -> int:
        """Function memory, MB."""

    @property
    def cpu_architecture(self) -> str:
        """CPU."""


AnyLane = TypeVar("AnyLane", bound=DeployedLane)


def choose_lane(model_bytes: int, clients: int, lanes: Sequence[AnyLane]) -> AnyLane:
    """The deployed lane that the planner recommends: the fastest that costs at most 1.25 times the cheapest.

    Raises:
        PlanningError: no lane can do it; gives each lane's reason and the next step.
    """
    check_round(model_bytes, clients)
    if not lanes:
        raise PlanningError("No lanes are deployed. Set shard_counts in the environment and deploy it.")
    feasible: dict[int, tuple[Plan, AnyLane]] = {}
    reasons = []
    for lane in lanes:
        # The cap was checked when the lane was deployed.
        plan = predict(
            model_bytes, clients, shards=lane.shards, memory_mb=lane.memory_mb, cpu=lane.cpu_architecture,
            memory_cap_mb=prices.LAMBDA_MAX_MEMORY_MB,
            account_concurrency=getattr(lane, "maximum_concurrency", None),
        )  # fmt: skip
        reason = plan.reason or _lane_too_small(model_bytes, clients, lane)
        if reason:
            reasons.append(f"{lane.shards} shards: {reason}")
        else:
            feasible[id(plan)] = plan, lane
    if not feasible:
        raise PlanningError(
            f"No deployed lane can average {clients:,} updates of {model_bytes:,} bytes. {' '.join(reasons)} "
            "Add a shard count that `orchestrator plan` finds feasible to shard_counts, or set the environment's "
            "model_bytes and clients, and deploy it again."
        )
    return feasible[id(recommended([plan for plan, _ in feasible.values()], None))][1]


def _lane_too_small(model_bytes: int, clients: int, lane: DeployedLane) -> str:
    # A lane is sized for the environment's model_bytes and clients; a larger round may still be asked of it.
    need = size_lane(
        model_bytes, clients, lane.shards,
        memory_cap_mb=prices.LAMBDA_MAX_MEMORY_MB, memory_mb_override=lane.memory_mb,
    )  # fmt: skip
    timeout_s: int | None = getattr(lane, "timeout_s", None)
    if timeout_s is not None and need.expected_s > timeout_s:
        return f"A shard takes up to {need.expected_s:,.0f} s, the lane's timeout is {timeout_s} s."
    storage_mb: int | None = getattr(lane, "ephemeral_storage_mb", None)
    if storage_mb is not None and need.ephemeral_storage_mb > storage_mb:
        return f"A shard needs {need.ephemeral_storage_mb:,} MB of ephemeral storage, the lane has {storage_mb:,} MB."
    return ""


# --- arguments -----------------------------------------------------------------------------------------------------


def _check(
    model_bytes: int, clients: int, profile: str, deadline_s: float | None, budget_usd: float | None,
    memory_cap_mb: int, account_concurrency: int | None,
) -> None:  # fmt: skip
    check_round(model_bytes, clients)
    _check_choice("profile", profile, PROFILES)
    for name, value, unit in (("deadline_s", deadline_s, "seconds"), ("budget_usd", budget_usd, "dollars")):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise PlanningError(f"{name} is {value!r}: expected more than 0 {unit}. Raise it or leave it out.")
    _check_memory("memory_cap_mb", memory_cap_mb)
    if account_concurrency is not None:
        check_range("account_concurrency", account_concurrency, 1, 1_000_000, "See your Lambda quotas.")


def _check_memory(name: str, value: int) -> None:
    check_range(name, value, prices.LAMBDA_MIN_MEMORY_MB, prices.LAMBDA_MAX_MEMORY_MB, "Lambda has no other sizes.")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise PlanningError(f"{name} is {value!r}: expected one of {', '.join(choices)}.")
