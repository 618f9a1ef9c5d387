"""Writes a comparison as a Markdown table and as a chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.planning.chart import load_pyplot

Row = dict[str, Any]

_COLUMNS: Sequence[tuple[str, Callable[[Row], str]]] = (
    ("topology", lambda r: r["topology"] + (f", M = {r['shards']}" if r["shards"] else "")),
    ("memory MB", lambda r: f"{r['function_memory_mb']:,}"),
    ("seconds", lambda r: f"{r['seconds']:.2f}"),
    ("per level", lambda r: " + ".join(f"{s:.2f}" for s in r["level_seconds"])),
    ("predicted s", lambda r: f"{r['predicted']['seconds']:.2f}"),
    ("function s", lambda r: f"{r['function_seconds']:.2f}"),
    ("peak MB", lambda r: f"{r['peak_memory_mb']:.0f}"),
    ("predicted MB", lambda r: f"{r['predicted']['peak_memory_mb']:,}"),
    ("invocations", lambda r: f"{r['invocations']:.0f}"),
    ("GETs", lambda r: f"{r['gets']:.0f}"),
    ("PUTs", lambda r: f"{r['puts']:.0f}"),
    ("$ by formula", lambda r: f"{r['formula_usd']:.6f}"),
    ("$ measured", lambda r: "-" if r["measured_usd"] is None else f"{r['measured_usd']:.6f}"),
    ("$ predicted, all-in", lambda r: f"{r['predicted']['usd_all_in']:.6f}"),
)


def to_markdown(document: Row) -> str:
    """What was compared, the table, and the differences of the global models."""
    d = document
    source = "synthetic updates (random float32 values)" if d["synthetic_updates"] else "given updates"
    lines = [
        f"{d['clients']} clients x {d['model_bytes']:,} bytes, {source}, environment {d['environment']}, medians of "
        f"{d['repeats']} runs each.",
        "",
    ]
    if d["emulator"]:
        lines += [
            f"**Seconds are those of the emulator at {d['emulator']}.** Counts, bytes, memory and dollars by formula "
            "are those of AWS.",
            "",
        ]
    names = [name for name, _ in _COLUMNS]
    lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(show(row) for _, show in _COLUMNS) + " |" for row in d["rows"]]
    lines += [
        f"| {name} | infeasible: {reason} |" + " |" * (len(names) - 2) for name, reason in d["infeasible"].items()
    ]
    lines += [
        "",
        "Requests, bytes and dollars are those of the functions; the all-in prediction includes clients, coordinator "
        "and SQS. Dollars by formula are those of the planner's GB-seconds and of the counted requests.",
    ]
    for difference in d["differences"]:
        lines.append(
            f"Global models of {' and '.join(difference['topologies'])}: {difference['differing']:,} of "
            f"{difference['elements']:,} elements differ"
            + (f", by at most {difference['max_ulps']:,} units in the last place." if difference["differing"] else ".")
        )
    return "\n".join(lines)


def write_chart(document: Row, path: Path) -> None:
    """Draw bars per topology: seconds by level, peak memory, dollars by formula, with predictions as outlines.

    Raises:
        PlanningError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    rows = document["rows"]
    names = [row["topology"] for row in rows]
    figure, (seconds, memory, dollars) = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    try:
        for level in range(max(len(row["level_seconds"]) for row in rows)):
            part = [(row["level_seconds"] + [0.0] * 3)[level] for row in rows]
            below = [sum(row["level_seconds"][:level]) for row in rows]
            seconds.bar(names, part, bottom=below, color=f"C{level}", label=f"level {level}")
        memory.bar(names, [row["peak_memory_mb"] for row in rows], color="C0", label="measured")
        dollars.bar(names, [row["formula_usd"] for row in rows], color="C0", label="by formula")
        for axes, key in ((seconds, "seconds"), (memory, "peak_memory_mb"), (dollars, "usd_all_in")):
            predicted = [row["predicted"][key] for row in rows]
            axes.bar(names, predicted, fill=False, edgecolor="black", linestyle="--", label="predicted on AWS")
            axes.legend(fontsize="small")
        seconds.set_title("seconds of averaging" + (", on an emulator" if document["emulator"] else ""))
        memory.set_title("peak memory of a function, MB")
        dollars.set_title("US dollars (prediction: all-in)")
        figure.savefig(path, dpi=150)
    finally:
        pyplot.close(figure)
