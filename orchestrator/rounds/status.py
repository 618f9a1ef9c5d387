"""Looking at rounds: where one stands, and which there are."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lambdas.protocol.keys import report_key, rounds_prefix
from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import read_object
from orchestrator.errors import BadInput
from orchestrator.rounds import lease
from orchestrator.rounds.manifest import read_manifest
from orchestrator.rounds.pin import list_updates
from orchestrator.rounds.processes import is_gone
from orchestrator.rounds.queues import log_group
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import read_record
from orchestrator.rounds.stored import stored_shards
from orchestrator.rounds.tree import dead_aggregators, stored_partials
from orchestrator.rounds.wait import ShardStep, dead_jobs

if TYPE_CHECKING:
    pass


def round_status(
    aws: AwsClients, bucket: Bucket, round_id: str, deployment: Deployment | None = None
) -> dict[str, Any]:
    """Where a round stands: state (`open`, `averaging`, `publishing`, `published`, `failed`, `aborted`), updates and
    shards, and who drives it or why nobody does.

    Args:
        deployment: to look for the round's jobs among the dead letters, too.

    Raises:
        BadInput: there is no such round.
    """
    record = read_record(bucket, round_id)
    if record is None:
        count = len(list_updates(bucket, round_id))
        if count == 0:
            raise BadInput(f"There is no round {round_id}. `orchestrator rounds` lists the rounds.")
        return {"round": round_id, "model": None, "state": "not opened", "updates": count}
    status: dict[str, Any] = {"round": round_id, "model": record.model}
    report = read_object(bucket, report_key(round_id))
    if report is not None:
        document = Report.from_bytes(report[0]).document
        status |= {"state": document["status"], "updates": len(document["participants"]), "shards": document["shards"]}
        return status | (
            {"error": document["error"]} if "error" in document else {"key": document["global_model"]["key"]}
        )
    manifest = read_manifest(bucket, round_id)
    coordinator = _coordinator(bucket, round_id)
    if manifest is None:
        return status | {"state": "open", "updates": len(list_updates(bucket, round_id))} | coordinator
    stored = stored_shards(bucket, manifest)
    status |= {
        "state": "averaging" if stored is not None else "publishing",
        "updates": len(manifest.participants),
        "shards": manifest.shards,
        "shards_done": len(stored) if stored is not None else manifest.shards,
    }
    gave_up: list[Any] = []
    lane = deployment.find_lane(manifest.topology, manifest.shards) if deployment is not None else None
    if manifest.topology != GRADS_SHARDING:
        status |= {"topology": manifest.topology}
        if stored is not None:
            status |= {"partial_sums": len(stored_partials(bucket, manifest, manifest.sha256))}
            gave_up = dead_aggregators(aws, lane, manifest) if lane is not None else []
    elif lane is not None and stored is not None:
        step = ShardStep(bucket, manifest)
        gave_up = sorted(dead_jobs(aws, lane, step, manifest.sha256) - set(stored))
    if lane is not None and gave_up:
        status |= {
            "gave_up": gave_up,
            "tries": lane.max_receive_count,
            "log_group": log_group(lane),
            "next_step": f"orchestrator resume --round {round_id} --redrive",
        }
    return status | coordinator


def _coordinator(bucket: Bucket, round_id: str) -> dict[str, Any]:
    """Who coordinates a round, or why nobody does."""
    held = lease.read_coordinator(bucket, round_id)
    if held is None:
        return {}
    record = held.record
    resume = f"`orchestrator resume --round {round_id}` continues it."
    if record.state == "stopped":
        return {"stopped": record.error["message"] if record.error else f"{record.process} was interrupted. {resume}"}
    if is_gone(record.process):
        return {"stopped": f"{record.process} is gone. {resume}"}
    return {"coordinator": str(record.process)}


def read_report(bucket: Bucket, round_id: str) -> Report:
    """The report of a round that has ended.

    Raises:
        BadInput: there is none.
    """
    found = read_object(bucket, report_key(round_id))
    if found is None:
        raise BadInput(
            f"Round {round_id} has no report: it has not ended, or has expired. `orchestrator status "
            f"--round {round_id}` says where it stands."
        )
    return Report.from_bytes(found[0])


def list_rounds(aws: AwsClients, bucket: Bucket, model: str | None = None) -> list[dict[str, Any]]:
    """The status of every round that has not expired, by round id; of one model where it is given."""
    pages = bucket.s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket.name, Prefix=rounds_prefix(), Delimiter="/"
    )
    names = [item["Prefix"].split("/")[1] for page in pages for item in page.get("CommonPrefixes", [])]
    look: Callable[[str], dict[str, Any]] = lambda name: round_status(aws, bucket, name)  # noqa: E731
    with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found = list(pool.map(look, names))
    return [status for status in found if model is None or status["model"] == model]
