"""A worker process that polls the lanes' queues and runs the functions' handlers: rounds without Lambda."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from lambdas.protocol.topologies import GRADS_SHARDING, TREES
from lambdas.shard_average import ShardWorker
from lambdas.storage.deliveries import retry_soon
from lambdas.storage.partials import SharedBlocks
from lambdas.tree_average import AggregatorWorker
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane

# Seconds of one SQS long poll of a single queue (at most 20). Several queues are polled one after the other, 1 s each.
_WAIT_S = 10


def work(
    aws: AwsClients,
    deployment: Deployment,
    lanes: Sequence[Lane],
    *,
    idle_exit_s: float | None = None,
    on_job: Callable[[bool], object] = lambda done: None,
    shared: SharedBlocks | None = None,
) -> int:
    """Take jobs from the lanes' queues, one at a time, until stopped.

    As under Lambda, a finished job is deleted from its queue. A failed job stays in the queue, which delivers it again
    and finally moves it to the dead-letter queue.

    Args:
        idle_exit_s: return when no queue had a job for this many seconds; None: never.
        on_job: called after every job with whether it is finished.
        shared: where LIFL's partial sums stay on this machine; None: they go through S3.

    Returns:
        The number of finished jobs.
    """
    bucket = aws.bucket(deployment.bucket)
    trees = AggregatorWorker(bucket, aws.sqs, deployment.result_queue_url, shared=shared)
    workers = dict.fromkeys(TREES, trees) | {GRADS_SHARDING: ShardWorker(bucket, aws.sqs, deployment.result_queue_url)}
    finished, idle_since = 0, time.monotonic()
    wait_s = _WAIT_S if len(lanes) == 1 else 1
    if idle_exit_s is not None:
        wait_s = min(wait_s, max(1, int(idle_exit_s)))
    while True:
        for lane in lanes:
            # Take jobs from one queue until it is empty, then from the next.
            while messages := _receive(aws, lane, wait_s):
                for message in messages:
                    done = _handle(aws, lane, workers[lane.topology], message)
                    finished += done
                    on_job(done)
                    idle_since = time.monotonic()
        if idle_exit_s is not None and time.monotonic() - idle_since >= idle_exit_s:
            return finished


def _handle(aws: AwsClients, lane: Lane, worker: ShardWorker | AggregatorWorker, message: Any) -> bool:
    """Do one job; returns whether it is finished."""
    receive_count = int(message["Attributes"]["ApproximateReceiveCount"])
    name = f"{socket.gethostname()}/{os.getpid()}"
    done = worker.run(message["Body"], receive_count=receive_count, worker=name)
    if done:
        aws.sqs.delete_message(QueueUrl=lane.queue_url, ReceiptHandle=message["ReceiptHandle"])
    else:
        retry_soon(aws.sqs, lane.queue_url, message["ReceiptHandle"], receive_count)
    return done


def _receive(aws: AwsClients, lane: Lane, wait_s: int) -> Sequence[Any]:
    return aws.sqs.receive_message(
        QueueUrl=lane.queue_url,
        MaxNumberOfMessages=1,
        WaitTimeSeconds=wait_s,
        MessageSystemAttributeNames=["ApproximateReceiveCount"],
    ).get("Messages", [])
