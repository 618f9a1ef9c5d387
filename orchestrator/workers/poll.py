"""The same handlers, polling the same queues, on any machine: rounds without Lambda."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from lambdas.shard_average import ShardWorker
from lambdas.storage.deliveries import retry_soon
from lambdas.storage.partials import SharedBlocks
from lambdas.tree_average import AggregatorWorker
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane

# SQS long polling, seconds (at most 20); shorter where several queues are polled in turn.
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

    A job is acknowledged when it is dealt with; one that failed stays in its queue, which delivers it again and, in
    the end, moves it to the dead-letter queue: as under Lambda.

    Args:
        idle_exit_s: return when no queue had a job for so many seconds (None: never).
        on_job: called after every job with whether it was dealt with.
        shared: where LIFL's partial sums stay on this machine (None: they go through S3).

    Returns:
        How many jobs were dealt with.
    """
    bucket = aws.bucket(deployment.bucket)
    sharded = ShardWorker(bucket, aws.sqs, deployment.result_queue_url)
    trees = AggregatorWorker(bucket, aws.sqs, deployment.result_queue_url, shared=shared)
    name = f"{socket.gethostname()}/{os.getpid()}"
    finished, idle_since = 0, time.monotonic()
    wait_s = _WAIT_S if len(lanes) == 1 else 1
    if idle_exit_s is not None:
        wait_s = min(wait_s, max(1, int(idle_exit_s)))
    while True:
        for lane in lanes:
            worker = trees if lane.tree else sharded
            # Stay with a queue until it is empty, then go on to the next.
            while messages := _receive(aws, lane, wait_s):
                for message in messages:
                    receive_count = int(message["Attributes"]["ApproximateReceiveCount"])
                    done = worker.run(message["Body"], receive_count=receive_count, worker=name)
                    if done:
                        aws.sqs.delete_message(QueueUrl=lane.queue_url, ReceiptHandle=message["ReceiptHandle"])
                        finished += 1
                    else:
                        retry_soon(aws.sqs, lane.queue_url, message["ReceiptHandle"], receive_count)
                    on_job(done)
                    idle_since = time.monotonic()
        if idle_exit_s is not None and time.monotonic() - idle_since >= idle_exit_s:
            return finished


def _receive(aws: AwsClients, lane: Lane, wait_s: int) -> Sequence[Any]:
    return aws.sqs.receive_message(
        QueueUrl=lane.queue_url,
        MaxNumberOfMessages=1,
        WaitTimeSeconds=wait_s,
        MessageSystemAttributeNames=["ApproximateReceiveCount"],
    ).get("Messages", [])
