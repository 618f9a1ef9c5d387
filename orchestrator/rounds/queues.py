"""The queues of a round: jobs for the workers, their results, and the dead letters of jobs that failed on every try."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.keys import report_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import AggregatorJob, Result, ShardJob, parse_job, parse_result
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import exists
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


log = logging.getLogger(__name__)
# How long one request waits for results, seconds (SQS long polling, at most 20 s).
_WAIT_S = 5
# A result of another running round becomes visible to that round's coordinator after this time, seconds.
_FOREIGN_HIDDEN_S = 2
# The most dead letters that are read. The queue keeps the letters of other rounds for days.
_LETTERS_LOOKED_AT = 1000
# Letters are hidden while others are read, seconds: longer than reading takes, so that none is received twice.
_LETTERS_HIDDEN_S = 30
# SQS SendMessageBatch takes at most ten messages. A message that SQS refuses is sent at most this many times.
_BATCH = 10
_SEND_ATTEMPTS = 5


class Results:
    """The results of one round, from the environment's result queue."""

    def __init__(self, aws: AwsClients, deployment: Deployment, manifest: RoundManifest) -> None:
        self._aws, self._manifest = aws, manifest
        self._bucket, self._url = aws.bucket(deployment.bucket), deployment.result_queue_url
        self._ended: dict[str, bool] = {}

    def receive(self, wait_s: int | None = None) -> list[Result]:
        """Receive and delete up to ten results of this round. Waits a few seconds for the first one.

        Results of rounds that have ended, and of older revisions of this round, are deleted too.
        """
        messages = self._aws.sqs.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=_WAIT_S if wait_s is None else wait_s
        ).get("Messages", [])
        mine, delete = [], []
        for message in messages:
            try:
                result = parse_result(message["Body"])
            except InvalidContract as error:
                log.warning("Dropped a message that is not a result: %s", error)
                delete.append(message)
                continue
            if result.manifest_sha256 == self._manifest.sha256:
                mine.append(result)
                delete.append(message)
            elif result.round_id == self._manifest.round_id or self._has_ended(result.round_id):
                delete.append(message)
            else:
                self._aws.sqs.change_message_visibility(
                    QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=_FOREIGN_HIDDEN_S
                )
        if delete:
            entries: list[Any] = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(delete)]
            self._aws.sqs.delete_message_batch(QueueUrl=self._url, Entries=entries)
        return mine

    def _has_ended(self, round_id: str) -> bool:
        if not self._ended.get(round_id):
            self._ended[round_id] = exists(self._bucket, report_key(round_id))
        return self._ended[round_id]


def dead_letters(
    aws: AwsClients, lane: Lane, digest: str, *, keep: bool = False
) -> dict[str, ShardJob | AggregatorJob]:
    """The jobs in the dead-letter queue that have this manifest hash, by receipt handle. Reads at most 1,000 letters.

    Args:
        keep: leave the manifest's letters hidden for a while, so that they can be deleted: a receipt handle is invalid
            after another process has received the letter.
    """
    found: dict[str, ShardJob | AggregatorJob] = {}
    seen = []
    for _ in range(_LETTERS_LOOKED_AT // 10):
        messages = aws.sqs.receive_message(
            QueueUrl=lane.dead_letter_queue_url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=_LETTERS_HIDDEN_S,
            # With 0, SQS asks only some of its servers, and may return nothing from a queue with messages.
            WaitTimeSeconds=1,
        ).get("Messages", [])
        if not messages:
            break
        seen += [message["ReceiptHandle"] for message in messages]
        for message in messages:
            try:
                job = parse_job(message["Body"])
            except InvalidContract:
                continue
            if job.manifest_sha256 == digest:
                found[message["ReceiptHandle"]] = job
    seen = [handle for handle in seen if not (keep and handle in found)]
    for i in range(0, len(seen), 10):  # Make them visible again for other processes.
        entries: list[Any] = [
            {"Id": str(n), "ReceiptHandle": handle, "VisibilityTimeout": 0} for n, handle in enumerate(seen[i : i + 10])
        ]
        aws.sqs.change_message_visibility_batch(QueueUrl=lane.dead_letter_queue_url, Entries=entries)
    return found


def delete_dead_letters(aws: AwsClients, lane: Lane, letters: Iterable[str]) -> None:
    """Delete letters that `dead_letters` found, by their receipt handles."""
    for handle in letters:
        aws.sqs.delete_message(QueueUrl=lane.dead_letter_queue_url, ReceiptHandle=handle)


def log_group(lane: Lane) -> str:
    """The CloudWatch log group of a lane's function. A try that was killed leaves nothing but its log."""
    return f"/aws/lambda/{lane.function_name}"


def queue_jobs(
    aws: AwsClients, queue_url: str, manifest: RoundManifest, shards: Iterable[int], *, attempt: int
) -> None:
    """Send one job per shard, as `send_jobs` does. `attempt` is 0 if none of the jobs was queued before, else 1."""
    digest = manifest.sha256
    send_jobs(aws, queue_url, [ShardJob(manifest.round_id, digest, shard, attempt) for shard in shards])


def send_jobs(aws: AwsClients, queue_url: str, jobs: Sequence[ShardJob | AggregatorJob]) -> None:
    """Send jobs, ten to a request, with several requests at once.

    Raises:
        OrchestratorError: SQS has refused a job five times. The round can be resumed.
    """
    batches = [jobs[i : i + _BATCH] for i in range(0, len(jobs), _BATCH)]
    with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        list(pool.map(lambda batch: _send(aws.sqs, queue_url, batch), batches))


def _send(sqs: SQSClient, queue_url: str, jobs: Sequence[ShardJob | AggregatorJob]) -> None:
    entries: list[Any] = [{"Id": str(i), "MessageBody": job.to_json()} for i, job in enumerate(jobs)]
    for _ in range(_SEND_ATTEMPTS):
        failed = sqs.send_message_batch(QueueUrl=queue_url, Entries=entries).get("Failed", [])
        again = {entry["Id"] for entry in failed}
        entries = [entry for entry in entries if entry["Id"] in again]
        if not entries:
            return
    raise OrchestratorError(
        f"SQS refused {len(entries)} jobs {_SEND_ATTEMPTS} times "
        f"({failed[0].get('Message', 'no reason given')}). `orchestrator resume` "
        "queues the jobs that are missing."
    )
