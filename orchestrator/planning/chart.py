"""Draws a plan: seconds and US dollars over the number of shards, with the trees for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import PlanningError
from orchestrator.planning.plan import RECOMMENDED, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".png", ".svg")
_seconds, _usd = attrgetter("predicted_seconds"), attrgetter("predicted_cost_usd")


def write_chart(plans: Sequence[Plan], path: Path) -> None:
    """Draw feasible plans: seconds above, US dollars below, of the fastest and cheapest plan of each shard count.

    Args:
        plans: from `plan_round`.
        path: the file to write; its suffix, .png or .svg, decides the format.

    Raises:
        PlanningError: no plan is feasible, the suffix is another one, the directory does not exist, or matplotlib is
            not installed.
    """
    feasible = [plan for plan in plans if plan.feasible]
    if not feasible:
        raise PlanningError("Nothing to draw: no configuration is feasible. Print the table to see the reasons.")
    if path.suffix.lower() not in _SUFFIXES:
        raise PlanningError(f"{path} ends in {path.suffix or 'nothing'!r}: expected .png or .svg. Choose another name.")
    if not path.parent.is_dir():
        raise PlanningError(f"There is no directory {path.parent} to write {path.name} to. Create it first.")
    pyplot = load_pyplot()
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 7), layout="constrained")
    try:
        _draw(above, feasible, _seconds, "seconds")
        _draw(below, feasible, _usd, "US dollars per round")
        below.set_xscale("log", base=2)
        below.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        below.set_xlabel("shards")
        above.legend(fontsize="small")
        above.set_title("Predicted latency and cost of a round")
        figure.savefig(path, dpi=150)
    finally:
        pyplot.close(figure)


def load_pyplot() -> Any:
    """matplotlib.pyplot, for charts in files. Imported when it is used: only charts need it, and its import is slow.

    Raises:
        PlanningError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise PlanningError("Charts need matplotlib. Install it: pip install 'fedagg[plot]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(axes: Axes, feasible: Sequence[Plan], value: Callable[[Plan], float], label: str) -> None:
    groups: dict[int, list[Plan]] = {}
    for plan in feasible:
        if plan.shards is not None:
            groups.setdefault(plan.shards, []).append(plan)
    shards = sorted(groups)
    for name, key, style in (("fastest", _seconds, "C0o-"), ("cheapest", _usd, "C1s-")):
        chosen = [min(groups[m], key=key) for m in shards]
        if chosen:
            axes.plot(shards, [value(plan) for plan in chosen], style, label=f"{name} of each shard count", ms=4)
    for index, tree in enumerate(sorted({plan.topology for plan in feasible if plan.shards is None})):
        cheapest = min((plan for plan in feasible if plan.topology == tree), key=_usd)
        style = ("--", ":")[index % 2]
        axes.axhline(value(cheapest), color=f"C{index + 2}", linestyle=style, label=f"{tree}, cheapest")
    for plan in feasible:
        if RECOMMENDED in plan.marks and plan.shards is not None:
            axes.plot([plan.shards], [value(plan)], "k*", markersize=13, label="recommended")
    axes.set_ylabel(label)
    axes.set_yscale("log")
    axes.grid(visible=True, which="both", alpha=0.3)
