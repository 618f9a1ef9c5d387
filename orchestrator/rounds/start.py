"""Starting and resuming a round. Start reading here; coordinator.py has the steps of a round in their order.

No state of a round is kept here. S3 holds its record, manifest, shards and report, so that the same command continues
a round that another process has begun. One process coordinates a round (lease.py). Any other process
that starts or resumes it waits for the report, and takes over when the coordinator ends or stops renewing its lease.
"""

from __future__ import annotations

import time
from dataclasses import replace

from lambdas.protocol.keys import check_name, report_key
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.s3 import read_object
from orchestrator.errors import BadInput, QuorumMissed, RoundAborted, RoundConflict, RoundFailed, error_from
from orchestrator.progress import Narration
from orchestrator.rounds import lease
from orchestrator.rounds.abort import clean_up
from orchestrator.rounds.averaging import averaging_of
from orchestrator.rounds.context import RoundContext
from orchestrator.rounds.coordinator import coordinate
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
    """Run a round: open it, wait for quorum or deadline, average, publish, report. Continues a round that was begun.

    If another process coordinates the round, this one waits for the report, and takes over when that process ends.

    Args:
        narration: told what happens; by default nothing is shown.
        replace_options: see `open_round`.

    Raises:
        RoundConflict: the round is already published, belongs to another model, or was opened with other options.
        QuorumMissed: at the deadline there are fewer updates than the quorum.
        RoundFailed: an update cannot be averaged, or every try of a job failed.
        RoundAborted: the round was aborted.
        NotDeployed: no lane is deployed for the shard count or the topology.
        PlanningError: no deployed lane can average the model.
        BadInput, InvalidName: an argument cannot be used.
    """
    bucket = aws.bucket(deployment.bucket)
    averaging_of(request.topology).check_lane(request, deployment)
    _check_retention(request, deployment)
    report = _ended(bucket, request.round_id)
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
    """Continue a round that was opened, or wait for the process that coordinates it. Returns the round's report.

    Args:
        redrive: queue the jobs again that failed on every try (they are in the dead-letter queue).
        timeout_s: how long to wait without any job being finished, seconds; by default the round's own.

    Raises:
        BadInput: there is no such round.
        And what `start_round` raises.
    """
    narration = narration or Narration()
    bucket = aws.bucket(deployment.bucket)
    record = read_record(bucket, check_name("round", round_id))
    if record is None:
        raise BadInput(f"There is no round {round_id}. `orchestrator rounds` lists the rounds.")
    report = _ended(bucket, round_id)
    if report is not None:
        narration.say(f"Round {round_id} is already published.")
        return report
    if timeout_s is not None:
        record = replace(record, request=replace(record.request, timeout_s=timeout_s))
    return _coordinate_or_follow(aws, deployment, record, narration, redrive=redrive)


def _check_retention(request: RoundRequest, deployment: Deployment) -> None:
    """Refuse a round whose updates may expire while it waits for others."""
    days = deployment.round_retention_days
    if request.longest_wait_s >= days * 86400:
        raise BadInput(
            f"Round {request.round_id} waits up to {request.longest_wait_s / 86400:.1f} days for updates, with every "
            f"extension of its deadline, and the environment deletes them after {days} days. Choose a shorter "
            f"deadline, or raise round_retention_days in environments/{deployment.environment} and deploy again."
        )


def _coordinate_or_follow(
    aws: AwsClients,
    deployment: Deployment,
    record: RoundRecord,
    narration: Narration,
    *,
    redrive: bool = False,
) -> Report:
    bucket = aws.bucket(deployment.bucket)
    taken: Lease | Held | Report = lease.take(bucket, record.round_id)
    while not isinstance(taken, Report):
        if isinstance(taken, Held):
            taken = _follow(bucket, taken, narration)
            continue
        try:
            with taken.kept() as held:
                return coordinate(RoundContext(aws, deployment, record, held, narration, redrive))
        except LeaseLost as error:
            narration.say(f"{error} Waiting for its result.")
            taken = lease.take(bucket, record.round_id)
    return taken


def _follow(bucket: Bucket, held: Held, narration: Narration) -> Report | Lease | Held:
    """Wait for the report of a round that another process coordinates.

    Returns:
        The report; or, when the lease has run out, what taking it returned.

    Raises:
        RoundAborted: the round was aborted.
        And what stopped the coordinator.
    """
    round_id = held.record.round_id
    watch = Watch(bucket, held)
    narration.say(
        f"Round {round_id} is coordinated by {held.record.process}. Waiting for its result; this process takes over "
        f"when that one does not renew its lease for {held.record.lease_s:.0f} s."
    )
    while True:
        report = _ended(bucket, round_id)
        if report is not None:
            return report
        if watch.has_run_out():
            record = watch.held.record
            # A missed quorum is not raised: this process may have been asked to wait longer, or for fewer clients.
            if record.state == "stopped" and record.error and record.error["kind"] != QuorumMissed.__name__:
                raise error_from(record.error["kind"], record.error["message"])
            narration.say(f"Round {round_id} is not coordinated by {record.process} any more; taking over.")
            return lease.take(bucket, round_id, instead_of=watch.held)
        if watch.held.record.state == "aborted":
            raise lease.aborted(watch.held.record)
        time.sleep(lease.WATCH_EVERY_S)


def _ended(bucket: Bucket, round_id: str) -> Report | None:
    """The report of a published round, None while a round has not ended.

    Raises:
        RoundAborted, or what ended the round: it has ended without a publication. What it may have left is removed.
    """
    found = read_object(bucket, report_key(round_id))
    if found is None:
        return None
    report = Report.from_bytes(found[0])
    document = report.document
    if document["status"] == "published":
        return report
    clean_up(bucket, round_id, document["model"])
    message = f"{document['error']} The round has ended; start one with another id."
    if document["status"] == "aborted":
        raise RoundAborted(message)
    raise error_from(str(document.get("error_kind", RoundFailed.__name__)), message)
