"""The figures of a comparison: those of one round, and those of one topology."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from orchestrator.planning.plan import Plan
from orchestrator.planning.planner import predict
from orchestrator.planning.prices import (
    LAMBDA_MAX_MEMORY_MB,
    LAMBDA_USD_PER_REQUEST,
    S3_GET_USD,
    S3_PUT_USD,
    compute_usd,
)
from orchestrator.planning.question import Account, Configuration, Question

_MEDIANS = ("function_seconds", "peak_memory_mb", "invocations", "gets", "puts", "bytes_read", "bytes_written")


def figures(report: dict[str, Any], on_aws: bool) -> dict[str, Any]:
    """The figures of one round, from its report."""
    results, lane, total = report["shard_results"], report["lane"], report["totals"]
    levels = report.get("levels") or [{"level": 0, "seconds": report["seconds"].get("averaging", 0.0)}]
    invocations = len(results) + len(report["redelivered"])
    requests_usd = invocations * LAMBDA_USD_PER_REQUEST + total["gets"] * S3_GET_USD + total["puts"] * S3_PUT_USD
    return {
        "shards": report["shards"],
        "lane": lane,
        "seconds": report["seconds"]["total"],
        "level_seconds": [level["seconds"] for level in levels],
        "function_seconds": total["wall_s"],
        "peak_memory_mb": total["peak_rss_mb"],
        "invocations": invocations,
        **{name: total[name] for name in ("gets", "puts", "bytes_read", "bytes_written")},
        "requests_usd": requests_usd,
        "measured_usd": (
            compute_usd(total["wall_s"], lane["memory_mb"], lane["cpu_architecture"]) + requests_usd if on_aws else None
        ),
    }


def row(topology: str, found: Sequence[dict[str, Any]], model_bytes: int, clients: int) -> dict[str, Any]:
    """The figures of one topology: medians over its rounds, and the planner's prediction for `clients` updates."""
    lane = found[0]["lane"]
    plan = predict(
        Question(model_bytes, clients, account=Account(LAMBDA_MAX_MEMORY_MB, lane["maximum_concurrency"])),
        Configuration(found[0]["shards"], topology, lane["memory_mb"], lane["cpu_architecture"]),
    )

    def median(name: str) -> float:
        return round(float(statistics.median(run[name] for run in found)), 9)

    return {
        "topology": topology,
        "shards": plan.shards,
        "function_memory_mb": lane["memory_mb"],
        "seconds": median("seconds"),
        "seconds_range": [min(run["seconds"] for run in found), max(run["seconds"] for run in found)],
        "level_seconds": [
            round(statistics.median(level), 3) for level in zip(*(run["level_seconds"] for run in found), strict=True)
        ],
        **{name: median(name) for name in _MEDIANS},
        # The planner's GB-seconds and the counted requests do not depend on whether this is an emulator.
        "formula_usd": round(plan.cost_breakdown.compute_usd + median("requests_usd"), 9),
        "measured_usd": median("measured_usd") if found[0]["measured_usd"] is not None else None,
        "predicted": _predicted(plan),
        "runs": list(found),
    }


def _predicted(plan: Plan) -> dict[str, Any]:
    return {
        "seconds": round(plan.predicted_seconds, 3),
        "peak_memory_mb": plan.peak_memory_mb,
        "invocations": plan.invocations,
        "gets": plan.s3_gets,
        "puts": plan.s3_puts,
        "usd_all_in": round(plan.predicted_cost_usd, 9),
    }
