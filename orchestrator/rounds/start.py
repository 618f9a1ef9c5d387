"""A round from its opening to its report. Read this first: submit, pin, dispatch, (shard_average,) collect, publish.

Nothing of a round is kept here: S3 holds its record, manifest, shards and report, so the same command continues a
round that another process began. One process coordinates a round (lease.py); any other one that is asked to waits for it,
and takes its place should it die.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lambdas.protocol.keys import check_name, report_key
from lambdas.protocol.topologies import GRADS_SHARDING
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.s3 import read_object
from orchestrator.errors import (
    BadInput,
    NotDeployed,
    OrchestratorError,
    PlanningError,
    QuorumMissed,
    RoundAborted,
    RoundConflict,
    RoundFailed,
)
from orchestrator.progress import Narration
from orchestrator.rounds import lease
from orchestrator.rounds.abort import clean_up
from orchestrator.rounds.coordinator import drive
from orchestrator.rounds.lease import Held, Lease, LeaseLost, Watch
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import RoundRecord, RoundRequest, open_round, read_record


def start_round(
    aws: AwsClients,
    deployment: Deployment,
    request: RoundRequest,
    narration: Narration | None = None,
    *,
    replace_options: bool = False,
) -> Report:
    """Open the round if need be, wait for quorum or deadline, average, publish, report; or continue where it stopped.

    Where another process coordinates the round, wait for its report, and take over should it die.

    Args:
        replace_options: see `orchestrator.record.open_round`.

    Raises:
        RoundConflict: the round is already published, belongs to another model, or was opened with other options.
        QuorumMissed: fewer updates than the quorum when the deadline passed.
        RoundFailed: a bad update, or a shard whose every try failed.
        RoundAborted: somebody has aborted the round.
        NotDeployed: no lane for the shard count.
        BadInput, InvalidName: a request that makes no sense.
    """
    bucket = aws.bucket(deployment.bucket)
    if request.shards is not None or request.topology != GRADS_SHARDING:
        deployment.lane_for(request.topology, request.shards or 1)
    report = _ended(aws, deployment, request.round_id)
    if report is not None:
        model = report.document["model"]
        raise RoundConflict(
            f"Round {request.round_id} of model {model} is already published. Fetch it with `orchestrator fetch "
            f"--model {model} --round {request.round_id}`, or start a round with another id."
        )
    record = open_round(bucket, request, replace_options=replace_options)
    return _coordinate_or_follow(aws, deployment, record, narration or Narration())


def resume_round(
    aws: AwsClients,
    deployment: Deployment,
    round_id: str,
    *,
    redrive: bool = False,
    timeout_s: float | None = None,
    narration: Narration | None = None,
) -> Report:
    """Continue a round that was opened, or wait for the process that drives it. A published round's report is returned.

    Args:
        redrive: send the round's dead letters, jobs whose every try failed, back to their queue.
        timeout_s: how long to wait without any shard being finished, seconds.

    Raises:
        BadInput: there is no such round.
        And what `start_round` raises.
    """
    narration = narration or Narration()
    record = read_record(aws.bucket(deployment.bucket), check_name("round", round_id))
    if record is None:
        raise BadInput(f"There is no round {round_id}. `orchestrator rounds` lists the rounds.")
    report = _ended(aws, deployment, round_id)
    if report is not None:
        narration.say(f"Round {round_id} is already published.")
        return report
    if timeout_s is not None:
        record = replace(record, request=replace(record.request, timeout_s=timeout_s))
    return _coordinate_or_follow(aws, deployment, record, narration, redrive=redrive)


def _coordinate_or_follow(
    aws: AwsClients,
    deployment: Deployment,
    record: RoundRecord,
    narration: Narration,
    *,
    redrive: bool = False,
) -> Report:
    bucket = aws.bucket(deployment.bucket)
    taken = lease.take(bucket, record.round_id)
    while True:
        if isinstance(taken, Lease):
            try:
                with taken.kept() as held:
                    return drive(aws, deployment, record, held, narration, redrive=redrive)
            except LeaseLost as error:
                narration.say(f"{error} Waiting for its result.")
                taken = lease.take(bucket, record.round_id)
                continue
        followed = _follow(aws, deployment, taken, narration)
        if isinstance(followed, Report):
            return followed
        taken = followed


def _follow(aws: AwsClients, deployment: Deployment, held: Held, narration: Narration) -> Report | Lease | Held:
    """Wait for the report of a round that another process drives; or take over, where the lease is free."""
    bucket, round_id = aws.bucket(deployment.bucket), held.record.round_id
    watch = Watch(bucket, held)
    coordinator = held.record.process
    narration.say(
        f"Round {round_id} is coordinated by {coordinator}. Waiting for its result, and taking over should it be gone for "
        f"{held.record.lease_s:.0f} s."
    )
    while True:
        report = _ended(aws, deployment, round_id)
        if report is not None:
            return report
        if watch.has_run_out():
            record = watch.held.record
            if record.state == "stopped" and record.error is not None:
                _raise_alike(record.error)
            narration.say(f"Round {round_id} is not coordinated by {record.process} any more; taking over.")
            return lease.take(bucket, round_id, instead_of=watch.held)
        if watch.held.record.state == "aborted":
            raise lease.aborted(watch.held.record)
        time.sleep(lease.WATCH_EVERY_S)


def _raise_alike(error: Mapping[str, Any]) -> None:
    """Raise what stopped the coordinator, unless this process may judge otherwise."""
    if error["exit_status"] == QuorumMissed.exit_status:
        return  # it may have been asked to wait longer, or for fewer
    told = (BadInput, NotDeployed, RoundFailed, RoundConflict, PlanningError, RoundAborted)
    kinds = {kind.exit_status: kind for kind in told}
    raise kinds.get(error["exit_status"], OrchestratorError)(error["message"])


def _ended(aws: AwsClients, deployment: Deployment, round_id: str) -> Report | None:
    """The report of a published round, None while a round has not ended.

    Raises:
        RoundFailed, RoundAborted: it has ended without a publication; what it may have left behind is cleaned up.
    """
    found = read_object(aws.bucket(deployment.bucket), report_key(round_id))
    if found is None:
        return None
    report = Report.from_bytes(found[0])
    if report.document["status"] == "published":
        return report
    clean_up(aws.bucket(deployment.bucket), round_id, report.document["model"])
    ended: type[OrchestratorError] = RoundAborted if report.document["status"] == "aborted" else RoundFailed
    if report.document.get("exit_status") == QuorumMissed.exit_status:
        ended = QuorumMissed
    raise ended(f"{report.document['error']} The round has ended; start one with another id.")
