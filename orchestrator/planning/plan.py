"""A plan is one configuration and its prediction. This module marks the best of several and prints them as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter

from orchestrator.planning.prices import CostBreakdown

CHEAPEST, FASTEST, RECOMMENDED = "cheapest", "fastest", "recommended"
# Without a deadline, the fastest configuration that costs at most this many times the cheapest is recommended. The
# first shards reduce latency most, and every further shard costs requests and start-ups.
KNEE = 1.25


@dataclass(frozen=True)
class Plan:
    """One configuration and its prediction.

    Attributes:
        topology: "grads-sharding", "lambda-fl" or "lifl".
        shards: M; None for the trees.
        memory_mb: function memory, MB.
        cpu_architecture: "arm64" or "x86_64".
        predicted_seconds: from closing the round to the published model (the clients' uploads come before).
        predicted_cost_usd: one round, US dollars: `cost_breakdown.total`, or `.paper_total` for whole-object.
        peak_memory_mb: resident memory of the largest function, MB.
        s3_gets, s3_puts, sqs_requests: requests of functions and coordinator; client_puts: of the clients' uploads.
        feasible, reason: False, and why, if it cannot work or exceeds the deadline or the budget.
        marks: any of "cheapest", "fastest", "recommended".
    """

    topology: str
    shards: int | None
    memory_mb: int
    cpu_architecture: str
    predicted_seconds: float
    predicted_cost_usd: float
    cost_breakdown: CostBreakdown
    peak_memory_mb: int
    invocations: int
    s3_gets: int
    s3_puts: int
    client_puts: int
    sqs_requests: int
    feasible: bool
    reason: str
    marks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The fields as a JSON object, rounded to milliseconds and 1e-9 dollars."""
        document = asdict(self)
        document["predicted_seconds"] = round(self.predicted_seconds, 3)
        document["predicted_cost_usd"] = round(self.predicted_cost_usd, 9)
        document["cost_breakdown"] = {name: round(usd, 9) for name, usd in self.cost_breakdown.to_json().items()}
        document["marks"] = list(self.marks)
        return document


_by_cost = attrgetter("predicted_cost_usd", "predicted_seconds")
_by_time = attrgetter("predicted_seconds", "predicted_cost_usd")


def mark(plans: Sequence[Plan], deadline_s: float | None) -> list[Plan]:
    """The same plans; of the feasible ones, the cheapest, the fastest and the recommended are marked."""
    feasible = [plan for plan in plans if plan.feasible]
    if not feasible:
        return list(plans)
    marks: dict[int, list[str]] = {}
    for name, choice in (
        (CHEAPEST, min(feasible, key=_by_cost)),
        (FASTEST, min(feasible, key=_by_time)),
        (RECOMMENDED, recommended(feasible, deadline_s)),
    ):
        marks.setdefault(id(choice), []).append(name)
    return [dataclasses.replace(plan, marks=tuple(marks.get(id(plan), ()))) for plan in plans]


def recommended(feasible: Sequence[Plan], deadline_s: float | None = None) -> Plan:
    """The cheapest of feasible plans if there is a deadline, else the fastest that costs at most KNEE times that."""
    cheapest = min(feasible, key=_by_cost)
    if deadline_s is not None:
        return cheapest
    affordable = [plan for plan in feasible if plan.predicted_cost_usd <= KNEE * cheapest.predicted_cost_usd]
    return min(affordable, key=_by_time)


_COLUMNS: Sequence[tuple[str, Callable[[Plan], str]]] = (
    ("TOPOLOGY", lambda plan: plan.topology),
    ("SHARDS", lambda plan: "-" if plan.shards is None else f"{plan.shards}"),
    ("MEMORY MB", lambda plan: f"{plan.memory_mb}"),
    ("CPU ARCHITECTURE", lambda plan: plan.cpu_architecture),
    ("SECONDS", lambda plan: f"{plan.predicted_seconds:.1f}"),
    ("USD", lambda plan: f"{plan.predicted_cost_usd:.6f}"),
    ("PEAK MB", lambda plan: f"{plan.peak_memory_mb}"),
    ("GETS", lambda plan: f"{plan.s3_gets}"),
    ("PUTS", lambda plan: f"{plan.s3_puts + plan.client_puts}"),
    ("", lambda plan: ", ".join(plan.marks) if plan.feasible else f"infeasible: {plan.reason}"),
)
_TEXT = {"TOPOLOGY", "CPU ARCHITECTURE", ""}


def format_table(plans: Sequence[Plan], *, best_only: bool = False) -> str:
    """An aligned table: one line per plan, with its marks, or the reason why it is infeasible.

    The column PUTS includes the clients' uploads.

    Args:
        best_only: print only the recommended configuration of each topology and shard count, and marked plans.
    """
    rows = best_of_each(plans) if best_only else plans
    cells = [[name for name, _ in _COLUMNS], *([show(plan) for _, show in _COLUMNS] for plan in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = (
        "  ".join(
            cell.ljust(width) if name in _TEXT else cell.rjust(width)
            for cell, width, (name, _) in zip(line, widths, _COLUMNS, strict=True)
        )
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def best_of_each(plans: Sequence[Plan]) -> list[Plan]:
    """The recommended plan of each topology and shard count (the cheapest if none is feasible), and marked plans."""
    groups: dict[tuple[str, int | None], list[Plan]] = {}
    for plan in plans:
        groups.setdefault((plan.topology, plan.shards), []).append(plan)
    kept = set()
    for group in groups.values():
        feasible = [plan for plan in group if plan.feasible]
        kept.add(id(recommended(feasible) if feasible else min(group, key=_by_cost)))
    return [plan for plan in plans if plan.marks or id(plan) in kept]
