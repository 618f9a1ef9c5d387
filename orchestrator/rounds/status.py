"""The state of a round, and the list of all rounds."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from lambdas.protocol.errors import InvalidContract, InvalidName, shown
from lambdas.protocol.keys import ROUNDS_PREFIX, report_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import read_object
from orchestrator.errors import BadInput
from orchestrator.rounds import lease
from orchestrator.rounds.averaging import averaging_of
from orchestrator.rounds.manifest import read_manifest
from orchestrator.rounds.pin import list_updates
from orchestrator.rounds.processes import is_gone
from orchestrator.rounds.queues import dead_letters, log_group
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import read_record
from orchestrator.rounds.stored import stored_shards


def round_status(
    aws: AwsClients, bucket: Bucket, round_id: str, deployment: Deployment | None = None
) -> dict[str, Any]:
    """The state of a round: `not opened`, `open`, `averaging`, `publishing`, `published`, `failed` or `aborted`.

    Also the number of updates and shards, and which process coordinates the round, or why none does.

    Args:
        deployment: given, the round's jobs are looked for in the dead-letter queue of their lane too.

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
        ended = Report.from_bytes(report[0]).document
        result = {"error": ended["error"]} if "error" in ended else {"key": ended["global_model"]["key"]}
        updates = len(ended["participants"])
        return status | {"state": ended["status"], "updates": updates, "shards": ended["shards"]} | result
    manifest = read_manifest(bucket, round_id)
    coordinator = _coordinator(bucket, round_id)
    if manifest is None:
        return status | {"state": "open", "updates": len(list_updates(bucket, round_id))} | coordinator
    return status | _averaging(aws, bucket, manifest, deployment) | coordinator


def _averaging(
    aws: AwsClients, bucket: Bucket, manifest: RoundManifest, deployment: Deployment | None
) -> dict[str, Any]:
    """The status of a round that is pinned and has no report yet; names the jobs that failed on every try."""
    averaging = averaging_of(manifest.topology)
    stored = stored_shards(bucket, manifest)
    status = {
        "state": "publishing" if stored is None else "averaging",
        "updates": len(manifest.participants),
        "shards": manifest.shards,
        "shards_done": manifest.shards if stored is None else len(stored),
        **averaging.progress(bucket, manifest, published=stored is None),
    }
    lane = deployment.find_lane(manifest.topology, manifest.shards) if deployment else None
    if stored is None or lane is None:
        return status
    gave_up = averaging.gave_up(dead_letters(aws, lane, manifest.sha256).values(), set(stored))
    if not gave_up:
        return status
    return status | {
        "gave_up": gave_up,
        "tries": lane.max_receive_count,
        "log_group": log_group(lane),
        "next_step": f"orchestrator resume --round {manifest.round_id} --redrive",
    }


def _coordinator(bucket: Bucket, round_id: str) -> dict[str, Any]:
    """The process that coordinates a round, or why none does."""
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
        BadInput: there is no report.
    """
    found = read_object(bucket, report_key(round_id))
    if found is None:
        raise BadInput(
            f"Round {round_id} has no report: it has not ended, or it has expired. `orchestrator status "
            f"--round {round_id}` shows its state."
        )
    return Report.from_bytes(found[0])


def list_rounds(aws: AwsClients, bucket: Bucket, model: str | None = None) -> list[dict[str, Any]]:
    """The status of every round, or every round of one model, that has not expired, in ascending round id.

    A round that cannot be read, because another release has opened it, has the state `unreadable` and no model.
    """
    pages = bucket.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=ROUNDS_PREFIX, Delimiter="/")
    names = [item["Prefix"].split("/")[1] for page in pages for item in page.get("CommonPrefixes", [])]

    def look(name: str) -> dict[str, Any]:
        try:
            return round_status(aws, bucket, name)
        except (InvalidContract, InvalidName) as error:  # of another release, or not written by this kit
            return {"round": name, "model": None, "state": "unreadable", "error": f"Round {shown(name)}: {error}"}

    with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found = list(pool.map(look, names))
    return [status for status in found if model is None or status["model"] == model]
