"""The same handlers, polling the same queues."""

from __future__ import annotations

from typing import Any

import pytest

from lambdas.protocol.messages import ShardJob, ShardResult
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.rounds.manifest import freeze_round
from orchestrator.rounds.pin import list_updates, pin_updates
from orchestrator.rounds.publish import publish
from orchestrator.rounds.queues import queue_jobs
from orchestrator.rounds.request import RoundRecord, RoundRequest
from orchestrator.rounds.stored import stored_shards
from orchestrator.workers import poll
from tests.support.rounds import expected_file, put, queued, read_global, weights


def averaging(aws: AwsClients, deployment: Deployment, shards: int, round_id: str = "r-1") -> Any:
    """A round with its jobs queued."""
    put(aws, deployment, "a", weights(1), 3, round_id)
    put(aws, deployment, "b", weights(2), 1, round_id)
    found = list_updates(aws.bucket(deployment.bucket), round_id)
    pinned = pin_updates(aws.bucket(deployment.bucket), RoundRequest("digits", round_id), found)
    manifest = freeze_round(
        aws.bucket(deployment.bucket), RoundRecord(RoundRequest("digits", round_id), 1.0), pinned, shards
    )
    queue_jobs(aws, deployment.lane(shards).queue_url, manifest, range(shards), attempt=0)
    return manifest


def test_a_worker_does_what_is_queued_on_its_lanes_and_stops_when_idle(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    first = averaging(aws, lanes_without_functions, 4, "r-1")
    second = averaging(aws, lanes_without_functions, 8, "r-2")
    averaging(aws, lanes_without_functions, 2, "r-3")
    lanes = [lanes_without_functions.lane(4), lanes_without_functions.lane(8)]
    told: list[bool] = []
    assert poll.work(aws, lanes_without_functions, lanes, idle_exit_s=0.1, on_job=told.append) == 12
    assert told == [True] * 12
    for manifest in (first, second):
        publish(aws.bucket(lanes_without_functions.bucket), manifest)
    expected = expected_file({"a": (weights(1), 3), "b": (weights(2), 1)})
    assert read_global(aws, lanes_without_functions, "r-1") == expected
    assert read_global(aws, lanes_without_functions, "r-2") == expected
    # The lane that was not named is untouched.
    assert queued(aws, lanes_without_functions) == 2


def test_every_finished_job_is_reported_with_what_it_took(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    averaging(aws, lanes_without_functions, 2)
    poll.work(aws, lanes_without_functions, [lanes_without_functions.lane(2)], idle_exit_s=0.1)
    results = []
    while messages := aws.sqs.receive_message(
        QueueUrl=lanes_without_functions.result_queue_url, MaxNumberOfMessages=10
    ).get("Messages"):
        results += [ShardResult.from_bytes(message["Body"]) for message in messages]
    assert sorted(r.shard for r in results) == [0, 1]
    for r in results:
        assert r.status == "done"
        assert r.receive_count == 1
        assert "/" in r.worker
        assert r.stats.bytes_read > 0
        assert r.stats.gets == 4  # the manifest, the coordinator's record and a range of each client
        assert r.stats.puts == 1
        assert r.sha256 is not None


def test_a_message_that_is_no_job_stays_for_the_dead_letter_queue(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    lane = lanes_without_functions.lane(1)
    aws.sqs.send_message(QueueUrl=lane.queue_url, MessageBody="not a job")
    told: list[bool] = []
    assert poll.work(aws, lanes_without_functions, [lane], idle_exit_s=0.1, on_job=told.append) == 0
    assert told == [False]
    assert queued(aws, lanes_without_functions) == 1


def test_a_job_of_a_round_that_is_gone_is_dropped(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    lane = lanes_without_functions.lane(1)
    aws.sqs.send_message(QueueUrl=lane.queue_url, MessageBody=ShardJob("r-gone", "ab" * 32, 0).to_json())
    assert poll.work(aws, lanes_without_functions, [lane], idle_exit_s=0.1) == 1
    assert queued(aws, lanes_without_functions) == 0
    assert "Messages" not in aws.sqs.receive_message(QueueUrl=lanes_without_functions.result_queue_url)


def test_a_job_that_failed_is_not_acknowledged_and_the_next_ones_are_done(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = averaging(aws, lanes_without_functions, 4)
    real = poll.ShardWorker.run

    def fail_once(self: Any, body: str, **kwargs: Any) -> bool:
        return ShardJob.from_bytes(body).shard != 2 and real(self, body, **kwargs)

    monkeypatch.setattr(poll.ShardWorker, "run", fail_once)
    done = poll.work(aws, lanes_without_functions, [lanes_without_functions.lane(4)], idle_exit_s=0.1)
    assert done == 3
    assert queued(aws, lanes_without_functions) == 1
    assert sorted(stored_shards(aws.bucket(lanes_without_functions.bucket), manifest) or {}) == [0, 1, 3]


def test_redelivery_is_told_to_the_handler(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = lanes_without_functions.lane(1)
    aws.sqs.send_message(QueueUrl=lane.queue_url, MessageBody="x")
    counts: list[int] = []

    def record(self: Any, body: str, *, receive_count: int, worker: str) -> bool:
        counts.append(receive_count)
        return len(counts) == 2

    monkeypatch.setattr(poll.ShardWorker, "run", record)
    first = aws.sqs.receive_message(QueueUrl=lane.queue_url)["Messages"][0]
    aws.sqs.change_message_visibility(
        QueueUrl=lane.queue_url, ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=0
    )
    poll.work(aws, lanes_without_functions, [lane], idle_exit_s=0.1)
    assert counts[0] == 2
