"""The base of the workers, which take one job message and send one result message, and the Lambda entry point.

`Worker.run` runs a job in Lambda and in `orchestrator worker`. Where it returns True, its caller deletes the message.
Where it returns False, the message stays in the queue, which delivers it again. After the last delivery the queue moves
it to the dead-letter queue.
"""

from __future__ import annotations

import codecs
import gc
import logging
import os
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lambdas.averaging.pacing import Pacing
from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import FederationError, InvalidContract, InvalidUpdate, StorageUnavailable, Superseded
from lambdas.protocol.keys import coordinator_key, manifest_key
from lambdas.protocol.lease import OVER, CoordinatorRecord
from lambdas.protocol.manifest import Exclusion, RoundManifest
from lambdas.protocol.messages import Job, JobResult, ShardStats
from lambdas.storage.bucket import Bucket
from lambdas.storage.connections import tls_context
from lambdas.storage.deliveries import beside, retry_soon, time_limit
from lambdas.storage.logs import keep_secrets_out
from lambdas.storage.shards import Written
from lambdas.storage.updates import ReadCounts

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


log = logging.getLogger(__name__)
AnyJob = TypeVar("AnyJob", bound=Job)
AnyResult = TypeVar("AnyResult", bound=JobResult)
# The most clients at fault that a result names, and the longest reason, since messages have a size limit. The replanned
# round finds the other clients.
_MOST_NAMED, _REASON_CHARS = 200, 500


def client_config() -> Config:
    """boto3 configuration with bounded waits and retries."""
    return Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "max_attempts": 5})


def s3_config() -> Config:
    """The same for S3, with Signature V4 and the region's own endpoint for presigned URLs.

    By default boto3 presigns with Signature V2, which S3 refuses for objects under KMS, and for the global endpoint,
    which redirects requests for new buckets of other regions. Bodies are not signed: a shard is sent over TLS with the
    SHA-256 of the averaged bytes in a signed header, so hashing it again is not needed.
    """
    style: Literal["auto", "virtual"] = "auto" if os.environ.get("AWS_ENDPOINT_URL") else "virtual"
    return client_config().merge(
        Config(signature_version="s3v4", s3={"addressing_style": style, "payload_signing_enabled": False})
    )


@dataclass
class Worker(ABC, Generic[AnyJob, AnyResult]):
    """Runs jobs of one kind. Between jobs it keeps its boto3 clients, and nothing of a round.

    Attributes:
        memory_mb: the function's memory, for the report; 0 outside Lambda.
        pacing: how updates are read.
    """

    bucket: Bucket
    sqs: SQSClient
    result_queue_url: str
    memory_mb: int = 0
    pacing: Pacing = field(default_factory=Pacing)

    def run(self, body: str, *, receive_count: int, worker: str, limit_s: float | None = None) -> bool:
        """Run one job and send its result.

        Args:
            body: the SQS message's body, a job.
            receive_count: SQS's ApproximateReceiveCount.
            worker: name of the process or function that runs the job, for the report.
            limit_s: seconds until the process is killed; None without such a limit.

        Returns:
            True if the message can be deleted, False if the queue should deliver it again.
        """
        try:
            job = self.parse(body)
        except InvalidContract as error:
            # The message names no round, so there is no result to send; it stays in the queue and ends in the
            # dead-letter queue.
            log.error("The message is not a job of this queue; it is left for the dead-letter queue: %s", error)
            return False
        what, result = self.begin(job)
        result = replace(result, receive_count=receive_count, worker=worker, memory_mb=self.memory_mb)
        try:
            with time_limit(limit_s):
                result = self.do(job, result)
        except Superseded as error:
            log.info("%s: dropped: %s", what, error)
            return True
        except Exception as error:
            result = _unsuccessful(what, error, result)
        try:
            self.sqs.send_message(QueueUrl=self.result_queue_url, MessageBody=result.to_json())
        except (ClientError, BotoCoreError) as error:
            # The coordinator finds a shard that is stored in S3 without the message, and nothing else.
            log.warning("%s: the result was not sent: %s", what, error)
            return result.status == "done" and result.is_in_s3
        log.info(
            "%s: %s in %.2f s, %.1f MB read", what, result.status, result.stats.wall_s, result.stats.bytes_read / 1e6
        )
        return result.status != "retrying"

    # -- what a kind of worker implements --

    @abstractmethod
    def parse(self, body: str) -> AnyJob:
        """The job in a message; InvalidContract if it is not a job for this worker."""

    @abstractmethod
    def begin(self, job: AnyJob) -> tuple[str, AnyResult]:
        """What the job does, in words, and its result with status `done`, not filled in yet."""

    @abstractmethod
    def do(self, job: AnyJob, result: AnyResult) -> AnyResult:
        """Do the work and return the completed result."""

    # -- what every kind of worker uses --

    def may_be_done(self, job: AnyJob, receive_count: int) -> bool:
        """Whether the job's output may be stored already: the job was queued or delivered before, or its round resumed.

        A resumed round queues its missing jobs again, so the earlier job may arrive after its repetition.

        Raises:
            Superseded: the round has ended, or all its shards are stored.
            StorageUnavailable: S3 failed after retries.
        """
        repeated = job.attempt > 0 or receive_count > 1
        data = self._read(coordinator_key(job.round_id))
        if data is None:
            return repeated
        coordinator = CoordinatorRecord.from_bytes(data)
        if coordinator.state in OVER:
            raise Superseded(f"round {job.round_id} is {coordinator.state}")
        return repeated or bool(coordinator.earlier)

    def manifest_of(self, job: AnyJob) -> RoundManifest:
        """The manifest of a job's round.

        Raises:
            Superseded: the round has a newer manifest, or none any more.
            StorageUnavailable: S3 failed after retries.
        """
        key = manifest_key(job.round_id)
        data = self._read(key)
        if data is None:
            raise Superseded(f"the manifest {key} does not exist any more")
        if sha256_hex(data) != job.manifest_sha256:
            raise Superseded(f"{key} is not the manifest of this job; the round was replanned")
        manifest = RoundManifest.from_bytes(data)
        if manifest.round_id != job.round_id:
            raise InvalidContract(f"Job of round {job.round_id}: the manifest is of round {manifest.round_id}.")
        return manifest

    def _read(self, key: str) -> bytes | None:
        """A small object; None if it does not exist."""
        try:
            return self.bucket.s3.get_object(Bucket=self.bucket.name, Key=key)["Body"].read()
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise StorageUnavailable(f"Reading {key}: {error}") from error


@dataclass
class Done:
    """The output of a job.

    Attributes:
        written: what is stored.
        segment: the shared memory that contains a partial sum; None where it is in S3.
        puts, write_s: PUT requests of this job, and the seconds they took; 0 where the output was stored already.
    """

    written: Written
    segment: str | None = None
    puts: int = 0
    write_s: float = 0.0


class Stopwatch:
    """Measures a job, from the creation of this object to `stats`."""

    def __init__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def stats(self, counts: ReadCounts, done: Done) -> ShardStats:
        """What the job took."""
        wall_s = time.perf_counter() - self._began
        return ShardStats(
            bytes_read=counts.bytes_read,
            bytes_written=done.written.nbytes if done.puts else 0,
            read_s=round(counts.seconds, 6),
            compute_s=round(max(0.0, wall_s - counts.seconds - done.write_s), 6),
            write_s=round(done.write_s, 6),
            wall_s=round(wall_s, 6),
            cpu_s=round(time.process_time() - self._cpu_began, 6),
            peak_rss_mb=peak_rss_mb(),
            gets=counts.gets + 2,  # and the manifest and the coordinator record
            puts=done.puts,
            retries=counts.retries,
        )


def _unsuccessful(what: str, error: Exception, result: AnyResult) -> AnyResult:
    """The result of a job that ended in an error; logs the error where it is not in the client's update."""
    kind = type(error).__name__
    if isinstance(error, InvalidContract):
        return replace(result, status="failed", error_kind=kind, error=f"{error}")
    if isinstance(error, InvalidUpdate):
        bad = tuple(
            Exclusion(e.client, type(e).__name__, f"{e}"[:_REASON_CHARS])
            for e in error.each[:_MOST_NAMED]
            if e.client is not None
        )
        return replace(result, status="failed", error_kind=kind, error=f"{error}", client=error.client, bad=bad)
    # A later delivery may succeed, whatever the error is; otherwise the job ends in the dead-letter queue.
    if isinstance(error, FederationError):
        log.warning("%s: %s", what, error)
        return replace(result, status="retrying", error_kind=kind, error=f"{error}")
    log.error("%s: %s", what, error, exc_info=error)
    # Errors of other libraries are named, because they may have no text, such as MemoryError.
    return replace(result, status="retrying", error_kind=kind, error=f"{kind}: {error}".removesuffix(": "))


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, MiB."""
    try:
        # getrusage would include the peak of the process that this one was forked from.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)


AnyWorker = TypeVar("AnyWorker", bound=Worker[Any, Any])


def worker_from_environment(kind: type[AnyWorker]) -> AnyWorker:
    """The function's worker, configured by FL_BUCKET, FL_RESULT_QUEUE_URL, FL_LOG_LEVEL and Lambda's own variables."""
    keep_secrets_out()
    logging.getLogger().setLevel(os.environ.get("FL_LOG_LEVEL", "INFO"))
    worker = kind(
        bucket=Bucket(boto3.client("s3", config=s3_config()), os.environ["FL_BUCKET"]),
        sqs=boto3.client("sqs", config=client_config()),
        result_queue_url=os.environ["FL_RESULT_QUEUE_URL"],
        memory_mb=int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "0")),
    )
    # Load now what the first use would load: endpoint rules, signer, certificates, the codec of host names.
    worker.bucket.s3.generate_presigned_url("get_object", Params={"Bucket": worker.bucket.name, "Key": "warm-up"})
    tls_context()
    codecs.lookup("idna")
    return worker


def handler_for(kind: type[AnyWorker], module: str) -> Callable[[dict[str, Any], Any], dict[str, list[dict[str, str]]]]:
    """The Lambda entry point of a kind of worker: SQS records in, `batchItemFailures` out (partial batch responses).

    Lambda gives INIT a whole core, whatever the function's size. So the boto3 clients are created during INIT, when the
    handler's `module` is imported; a small function would take several times as long in its first invocation.
    """
    workers = [worker_from_environment(kind)] if os.environ.get("_HANDLER", "").startswith(module) else []
    if workers:
        gc.freeze()  # boto3's many objects live as long as the process; exclude them from garbage collection

    def handler(event: dict[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
        if not workers:
            workers.append(worker_from_environment(kind))
        name = f"{getattr(context, 'function_name', 'function')}/{getattr(context, 'aws_request_id', '')}"
        remaining_ms = getattr(context, "get_remaining_time_in_millis", lambda: None)
        failures = []
        for record in event["Records"]:
            receive_count = int(record.get("attributes", {}).get("ApproximateReceiveCount", 1))
            left_ms = remaining_ms()
            limit_s = None if left_ms is None else left_ms / 1000
            worker = workers[0]
            if not worker.run(record["body"], receive_count=receive_count, worker=name, limit_s=limit_s):
                failures.append({"itemIdentifier": record["messageId"]})
                if "eventSourceARN" in record:
                    queue_url = beside(worker.result_queue_url, record["eventSourceARN"])
                    retry_soon(worker.sqs, queue_url, record["receiptHandle"], receive_count)
        return {"batchItemFailures": failures}

    return handler
