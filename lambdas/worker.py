"""What the workers share: one job in, one result message out.

`Worker.run` does a job, in Lambda and in `orchestrator worker`, and its answer decides who acknowledges the message:
True means that the message can go, False leaves it in the queue, which delivers it again and, after the last try, moves
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

from lambdas.averaging.mean import Pacing
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
from lambdas.storage.updates import ReadCounts

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


log = logging.getLogger(__name__)
AnyJob = TypeVar("AnyJob", bound=Job)
AnyResult = TypeVar("AnyResult", bound=JobResult)
# How many clients at fault a result names, and how long a reason may be: a message has its limits. Who is left out is
# found the next time.
_MOST_NAMED, _REASON_CHARS = 200, 500


def client_config() -> Config:
    """Bounded waits and retries for the worker's own S3 and SQS calls."""
    return Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "max_attempts": 5})


def s3_config() -> Config:
    """The same, with Signature V4 and the region's own endpoint also for the URLs that the worker presigns.

    By itself boto3 presigns with Signature V2, which S3 refuses for objects under KMS, and for the global endpoint,
    which redirects requests for a new bucket of another region. Shards are sent with the SHA-256 of what was averaged,
    in a signed header, and over TLS: boto3 need not hash them again to sign the body too.
    """
    style: Literal["auto", "virtual"] = "auto" if os.environ.get("AWS_ENDPOINT_URL") else "virtual"
    return client_config().merge(
        Config(signature_version="s3v4", s3={"addressing_style": style, "payload_signing_enabled": False})
    )


@dataclass
class Worker(ABC, Generic[AnyJob, AnyResult]):
    """Runs one kind of jobs. It keeps its clients between jobs, and nothing of a round.

    Attributes:
        bucket: the environment's.
        result_queue_url: where result messages go.
        memory_mb: the function's memory, for the report; 0 outside Lambda.
    """

    bucket: Bucket
    sqs: SQSClient
    result_queue_url: str
    memory_mb: int = 0
    pacing: Pacing = field(default_factory=Pacing)

    def run(self, body: str, *, receive_count: int, worker: str, limit_s: float | None = None) -> bool:
        """Do one job.

        Args:
            body: the SQS message's body, a job.
            receive_count: SQS's ApproximateReceiveCount.
            worker: who runs it, for the report.
            limit_s: seconds until the process is killed (None: it is not).

        Returns:
            True when the message is dealt with, False when it should be delivered again.
        """
        try:
            job = self.parse(body)
        except InvalidContract as error:
            # Nobody to tell: a message that names no round can only be looked at in the dead-letter queue.
            log.error("Not a job of this queue, left for the dead-letter queue: %s", error)
            return False
        what, result = self.begin(job)
        result = replace(result, receive_count=receive_count, worker=worker, memory_mb=self.memory_mb)
        try:
            with time_limit(limit_s):
                result = self.do(job, result)
        except Superseded as error:
            log.info("%s: dropped: %s", what, error)
            return True
        except (InvalidUpdate, InvalidContract) as error:
            client, bad = _at_fault(error)
            result = replace(
                result, status="failed", error_kind=type(error).__name__, error=f"{error}", client=client, bad=bad
            )
        except Exception as error:
            # Whatever it is, a later delivery may succeed; the dead-letter queue keeps the job if none does.
            level = logging.WARNING if isinstance(error, FederationError) else logging.ERROR
            log.log(level, "%s: %s", what, error, exc_info=not isinstance(error, FederationError))
            result = replace(result, status="retrying", error_kind=type(error).__name__, error=_sentence(error))
        try:
            self.sqs.send_message(QueueUrl=self.result_queue_url, MessageBody=result.to_json())
        except (ClientError, BotoCoreError) as error:
            # What is in S3 can be seen there without its message; anything else is known from its message only.
            log.warning("%s: no result sent: %s", what, error)
            return result.status == "done" and result.is_in_s3
        log.info(
            "%s: %s in %.2f s, %.1f MB read", what, result.status, result.stats.wall_s, result.stats.bytes_read / 1e6
        )
        return result.status != "retrying"

    # -- what differs between shards and aggregators --

    @abstractmethod
    def parse(self, body: str) -> AnyJob:
        """The job in a message; InvalidContract where it is not one of this worker's."""

    @abstractmethod
    def begin(self, job: AnyJob) -> tuple[str, AnyResult]:
        """What the job does, in words, and the result that is sent if it succeeds, still empty."""

    @abstractmethod
    def do(self, job: AnyJob, result: AnyResult) -> AnyResult:
        """Do the work; the result, filled in."""

    # -- what they share --

    def may_be_done(self, job: AnyJob, receive_count: int) -> bool:
        """Whether what the job makes may be stored already: it was queued or delivered before, or its round resumed.

        A round that is resumed queues its missing jobs again, so a job from before may come after its repetition.

        Raises:
            Superseded: the round has ended, or nothing of it is missing any more.
        """
        key = coordinator_key(job.round_id)
        try:
            coordinator = CoordinatorRecord.from_bytes(
                self.bucket.s3.get_object(Bucket=self.bucket.name, Key=key)["Body"].read()
            )
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchKey":
                return job.attempt > 0 or receive_count > 1
            raise StorageUnavailable(f"Reading {key}: {error}") from error
        if coordinator.state in OVER:
            raise Superseded(f"round {job.round_id} is {coordinator.state}")
        return job.attempt > 0 or receive_count > 1 or bool(coordinator.earlier)

    def manifest_of(self, job: AnyJob) -> RoundManifest:
        """The manifest that a job was made for.

        Raises:
            Superseded: the round has another manifest by now, or none.
            StorageUnavailable: S3 kept failing.
        """
        key = manifest_key(job.round_id)
        try:
            data = self.bucket.s3.get_object(Bucket=self.bucket.name, Key=key)["Body"].read()
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchKey":
                raise Superseded(f"the round has no manifest any more ({key})") from error
            raise StorageUnavailable(f"Reading {key}: {error}") from error
        if sha256_hex(data) != job.manifest_sha256:
            raise Superseded(f"{key} is not the manifest that the job was made for; the round was planned anew")
        manifest = RoundManifest.from_bytes(data)
        if manifest.round_id != job.round_id:
            raise InvalidContract(f"Job of round {job.round_id}: the manifest is of round {manifest.round_id}.")
        return manifest


def stats_of(
    began: float, cpu_began: float, counts: ReadCounts, *, write_s: float, puts: int, written: int
) -> ShardStats:
    """What a job took that began at perf_counter `began` and process_time `cpu_began` and stored `written` bytes."""
    wall_s = time.perf_counter() - began
    return ShardStats(
        bytes_read=counts.bytes_read,
        bytes_written=written if puts else 0,
        read_s=round(counts.seconds, 6),
        compute_s=round(max(0.0, wall_s - counts.seconds - write_s), 6),
        write_s=round(write_s, 6),
        wall_s=round(wall_s, 6),
        cpu_s=round(time.process_time() - cpu_began, 6),
        peak_rss_mb=peak_rss_mb(),
        gets=counts.gets + 2,  # and the manifest and the coordinator's record
        puts=puts,
        retries=counts.retries,
    )


def _at_fault(error: InvalidUpdate | InvalidContract) -> tuple[str | None, tuple[Exclusion, ...]]:
    """The (first) client at fault, and all of them with what is wrong with their updates."""
    if isinstance(error, InvalidContract):
        return None, ()
    bad = [(e.client, e) for e in error.each[:_MOST_NAMED]]
    return error.client, tuple(Exclusion(c, type(e).__name__, f"{e}"[:_REASON_CHARS]) for c, e in bad if c is not None)


def _sentence(error: Exception) -> str:
    """What went wrong; an error that is not the kit's own may have no words, as MemoryError has none."""
    return f"{error}" if isinstance(error, FederationError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, MiB."""
    try:
        # Not getrusage's figure, which remembers the process that this one was forked from.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)


AnyWorker = TypeVar("AnyWorker", bound=Worker[Any, Any])


def worker_from_environment(kind: type[AnyWorker]) -> AnyWorker:
    """The function's worker: FL_BUCKET, FL_RESULT_QUEUE_URL, FL_LOG_LEVEL and what Lambda itself sets."""
    keep_secrets_out()
    logging.getLogger().setLevel(os.environ.get("FL_LOG_LEVEL", "INFO"))
    worker = kind(
        bucket=Bucket(boto3.client("s3", config=s3_config()), os.environ["FL_BUCKET"]),
        sqs=boto3.client("sqs", config=client_config()),
        result_queue_url=os.environ["FL_RESULT_QUEUE_URL"],
        memory_mb=int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "0")),
    )
    # What is made on first use otherwise: endpoint rules, signer, certificates, the codec of host names.
    worker.bucket.s3.generate_presigned_url("get_object", Params={"Bucket": worker.bucket.name, "Key": "warm-up"})
    tls_context()
    codecs.lookup("idna")
    return worker


def handler_for(kind: type[AnyWorker], module: str) -> Callable[[dict[str, Any], Any], dict[str, list[dict[str, str]]]]:
    """The Lambda entry point of a kind of worker: SQS records in, `batchItemFailures` out (partial batch responses).

    Lambda gives INIT a whole core, whatever the function's size: a small function starts several times faster with its
    clients made here, when its `module` is imported, than in its first invocation.
    """
    workers = [worker_from_environment(kind)] if os.environ.get("_HANDLER", "").startswith(module) else []
    if workers:
        gc.freeze()  # boto3's many objects stay: no garbage collection needs to look at them again

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
