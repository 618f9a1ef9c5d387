"""The three topologies side by side, for real: the same updates, bucket, queues and round protocol, one table."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lambdas.protocol.keys import update_key
from lambdas.protocol.tensor_table import TensorSpec, TensorTable
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.s3 import delete_objects, list_objects
from orchestrator.client.fetch import fetch
from orchestrator.client.sources import Tensors
from orchestrator.client.submit import submit
from orchestrator.comparison.ulps import compare_models
from orchestrator.errors import BadInput, NotDeployed
from orchestrator.planning.planner import choose_lane, predict
from orchestrator.planning.prices import (
    LAMBDA_MAX_MEMORY_MB,
    LAMBDA_USD_PER_REQUEST,
    S3_GET_USD,
    S3_PUT_USD,
    compute_usd,
)
from orchestrator.planning.question import Account, Configuration, Question
from orchestrator.progress import Narration
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round

_BLOCK = 4 * 1024**2


@dataclass(frozen=True)
class ClientUpdate:
    """One client's update: what every topology averages."""

    client: str
    tensors: Tensors
    examples: int


def synthetic_updates(model_bytes: int, clients: int) -> list[ClientUpdate]:
    """Updates of one float32 tensor of random values, with uneven example counts; the same for the same arguments."""
    if model_bytes < 4 or clients < 1:
        raise BadInput("Synthetic updates need at least 4 bytes and 1 client. Raise --model-bytes or --clients.")
    table = TensorTable((TensorSpec("weight", "F32", (model_bytes // 4,)),))

    def values(client: int) -> Iterator[memoryview]:
        for block, start in enumerate(range(0, table.elements, _BLOCK)):
            generator = np.random.default_rng([client, block])
            yield generator.standard_normal(min(_BLOCK, table.elements - start), dtype=np.float32).data.cast("B")

    return [
        ClientUpdate(f"client-{c:05d}", Tensors(table, lambda _, c=c: values(c)), 1 + 37 * c % 1000)  # type: ignore[misc]
        for c in range(clients)
    ]


def compare(
    aws: AwsClients,
    deployment: Deployment,
    updates: Sequence[ClientUpdate],
    *,
    synthetic: bool,
    shards: int | None = None,
    repeats: int = 1,
    topologies: Sequence[str] = TOPOLOGIES,
    keep: bool = False,
    narration: Narration | None = None,
) -> dict[str, Any]:
    """Run a round of the same updates by each topology, `repeats` times in turn, and compare.

    Args:
        synthetic: the updates are made up; the document says so.
        shards: M of grads-sharding; None: the planner's choice among the lanes.
        keep: leave rounds and global models in the bucket.

    Returns:
        A JSON document: `rows`, one per topology with medians over the repeats beside the planner's prediction;
        `differences` of the global models from the first one's; `infeasible`, what has no lane, with reasons.

    Raises:
        What `start_round` raises.
    """
    narration = narration or Narration()
    nbytes = updates[0].tensors.table.nbytes
    if shards is None:
        shards = choose_lane(nbytes, len(updates), list(deployment.lanes.values())).shards
    infeasible, runs = {}, dict[str, list[dict[str, Any]]]()
    for topology in topologies:
        try:
            deployment.lane_for(topology, shards)
            runs[topology] = []
        except NotDeployed as error:
            infeasible[topology] = str(error)
            narration.say(str(error))
    name = f"compare-{time.time_ns() // 1_000_000}"
    bucket = aws.bucket(deployment.bucket)
    rounds: list[str] = []
    first: dict[str, str] = {}
    try:
        for repeat in range(repeats):
            for topology in runs:
                round_id = f"{name}-{topology}-{repeat}"
                narration.say(f"{topology}, run {repeat + 1} of {repeats}: {len(updates)} updates ...")
                for update in updates:
                    if rounds:
                        source: Any = {"Bucket": bucket.name, "Key": update_key(rounds[0], update.client)}
                        bucket.s3.copy(source, bucket.name, update_key(round_id, update.client))
                    else:
                        submit(bucket, round_id, update.client, update.tensors, update.examples)
                rounds.append(round_id)
                first.setdefault(topology, round_id)
                request = RoundRequest(
                    model=name, round_id=round_id, min_clients=len(updates), topology=topology,
                    shards=shards if topology == GRADS_SHARDING else None,
                )  # fmt: skip
                report = start_round(aws, deployment, request, narration).document
                runs[topology].append(_figures(dict(report), deployment.endpoint_url is None))
        differences = _differences(bucket, name, first)
    finally:
        if not keep:
            for prefix in (f"rounds/{name}-", f"models/{name}/"):
                delete_objects(bucket, [item["Key"] for item in list_objects(bucket, prefix)])
    return {
        "environment": deployment.environment,
        "emulator": deployment.endpoint_url,
        "synthetic_updates": synthetic,
        "model_bytes": nbytes,
        "clients": len(updates),
        "repeats": repeats,
        "rows": [_row(a, found, nbytes, len(updates)) for a, found in runs.items()],
        "differences": differences,
        "infeasible": infeasible,
    }


def _figures(report: dict[str, Any], on_aws: bool) -> dict[str, Any]:
    """What one round took."""
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
        "gets": total["gets"],
        "puts": total["puts"],
        "bytes_read": total["bytes_read"],
        "bytes_written": total["bytes_written"],
        "requests_usd": requests_usd,
        "measured_usd": (
            compute_usd(total["wall_s"], lane["memory_mb"], lane["cpu_architecture"]) + requests_usd if on_aws else None
        ),
    }


def _row(topology: str, found: Sequence[dict[str, Any]], nbytes: int, clients: int) -> dict[str, Any]:
    lane = found[0]["lane"]
    plan = predict(
        Question(nbytes, clients, account=Account(LAMBDA_MAX_MEMORY_MB, lane["maximum_concurrency"])),
        Configuration(found[0]["shards"], topology, lane["memory_mb"], lane["cpu_architecture"]),
    )

    def median(name: str) -> float:
        return round(float(statistics.median(run[name] for run in found)), 9)

    return {
        "topology": topology,
        "shards": found[0]["shards"] if topology == GRADS_SHARDING else None,
        "function_memory_mb": lane["memory_mb"],
        "seconds": median("seconds"),
        "seconds_range": [min(run["seconds"] for run in found), max(run["seconds"] for run in found)],
        "level_seconds": [
            round(statistics.median(level), 3) for level in zip(*(run["level_seconds"] for run in found), strict=True)
        ],
        **{
            name: median(name)
            for name in (
                "function_seconds",
                "peak_memory_mb",
                "invocations",
                "gets",
                "puts",
                "bytes_read",
                "bytes_written",
            )
        },
        # GB-seconds by the planner's formula, requests as counted: what carries over from an emulator to AWS.
        "formula_usd": round(plan.cost_breakdown.compute_usd + median("requests_usd"), 9),
        "measured_usd": median("measured_usd") if found[0]["measured_usd"] is not None else None,
        "predicted": {
            "seconds": round(plan.predicted_seconds, 3),
            "peak_memory_mb": plan.peak_memory_mb,
            "invocations": plan.invocations,
            "gets": plan.s3_gets,
            "puts": plan.s3_puts,
            "usd_all_in": round(plan.predicted_cost_usd, 9),
        },
        "runs": list(found),
    }


def _differences(bucket: Bucket, model: str, rounds: dict[str, str]) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory(prefix="compare-") as directory:
        paths = {a: Path(directory) / f"{a}.safetensors" for a in rounds}
        for topology, round_id in rounds.items():
            fetch(bucket, model, paths[topology], round_id=round_id)
        base = next(iter(paths), None)
        for topology in list(paths)[1:]:
            assert base is not None
            difference = compare_models(paths[base], paths[topology])
            found.append(
                {
                    "topologies": [base, topology],
                    "elements": difference.elements,
                    "differing": difference.differing,
                    "max_ulps": difference.max_ulps,
                }
            )
    return found
