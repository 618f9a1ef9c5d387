"""Workers die in the middle of a shard, are too slow, run out of memory; broken and hostile messages come by."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import pytest

from lambdas.protocol.keys import update_key
from lambdas.protocol.messages import ShardJob
from lambdas.shard_average import ShardWorker
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.errors import RoundFailed
from orchestrator.rounds import queues, wait
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import resume_round, start_round
from orchestrator.rounds.status import round_status
from orchestrator.workers import poll
from tests.support.rounds import LARGE, expected_file, manifest_of, put, put_bytes, read_global, update_bytes, weights


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_WAIT_S", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.3)
    monkeypatch.setattr("lambdas.storage.deliveries.RETRY_BASE_S", 0.01)


@pytest.fixture
def lane(aws: AwsClients, lanes_without_functions: Deployment) -> Lane:
    """The lane for two shards, as Terraform makes it: with its dead-letter queue, and an impatient queue."""
    lane = lanes_without_functions.lane(2)
    arn = aws.sqs.get_queue_attributes(QueueUrl=lane.dead_letter_queue_url, AttributeNames=["QueueArn"])
    policy = {"deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": str(lane.max_receive_count)}
    aws.sqs.set_queue_attributes(
        QueueUrl=lane.queue_url, Attributes={"RedrivePolicy": json.dumps(policy), "VisibilityTimeout": "1"}
    )
    return lane


def doomed(deployment: Deployment, fate: str) -> subprocess.Popen[str]:
    """A worker in a process of its own that meets its fate in the middle of a shard."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.doomed_worker", fate], stdin=subprocess.PIPE, text=True
    )
    assert process.stdin
    process.stdin.write(json.dumps({**asdict(deployment), "lanes": {2: asdict(deployment.lane(2))}}))
    process.stdin.close()
    return process


@pytest.fixture
def working(aws: AwsClients, lanes_without_functions: Deployment, lane: Lane) -> Any:
    """Starts a healthy worker in a thread."""

    def start(idle_exit_s: float = 4) -> None:
        threading.Thread(
            target=poll.work,
            args=(aws, lanes_without_functions, [lane]),
            kwargs={"idle_exit_s": idle_exit_s},
            daemon=True,
        ).start()

    return start


def submitted(aws: AwsClients, deployment: Deployment, shape: tuple[int, int] = (3, 5)) -> bytes:
    values = {client: (weights(ord(client), shape), count) for client, count in (("a", 5), ("b", 2))}
    for client, (value, count) in values.items():
        put(aws, deployment, client, value, count)
    return expected_file(values)


def request() -> RoundRequest:
    return RoundRequest("digits", "r-1", 2, min_clients=2, timeout_s=40)


@pytest.mark.parametrize(("fate", "cause"), [("kill", None), ("memory", "MemoryError")])
def test_a_worker_that_dies_in_the_middle_of_a_shard_is_replaced_by_the_next_delivery(
    aws: AwsClients, lanes_without_functions: Deployment, lane: Lane, working: Any, fate: str, cause: str | None
) -> None:
    expected = submitted(aws, lanes_without_functions, LARGE)
    process = doomed(lanes_without_functions, fate)

    def replace() -> None:
        process.wait(30)
        working()

    threading.Thread(target=replace, daemon=True).start()
    report = start_round(aws, lanes_without_functions, request()).document
    assert process.returncode == (-signal.SIGKILL if fate == "kill" else 0)
    assert read_global(aws, lanes_without_functions) == expected
    assert max(result["receive_count"] for result in report["shard_results"]) > 1
    assert {told["error"] for told in report["redelivered"]} == ({cause} if cause else set())
    if fate == "kill":
        assert report["silent_tries"] == [
            {"shard": r["shard"], "tries": 1, "log_group": f"/aws/lambda/{lane.function_name}"}
            for r in report["shard_results"]
            if r["receive_count"] == 2
        ]


def test_a_shard_that_kills_every_worker_is_named_with_its_tries_and_where_to_look(
    aws: AwsClients, lanes_without_functions: Deployment, lane: Lane, working: Any
) -> None:
    expected = submitted(aws, lanes_without_functions)
    stop = threading.Event()

    def die_again_and_again() -> None:
        while not stop.is_set():
            doomed(lanes_without_functions, "kill").wait(30)

    threading.Thread(target=die_again_and_again, daemon=True).start()
    gave_up = (
        rf"shard \d of 2 failed 3 times, last cause: no result was sent \(the function was killed.*"
        rf"/aws/lambda/{lane.function_name}.*resume --round r-1 --redrive"
    )
    try:
        with pytest.raises(RoundFailed, match=gave_up):
            start_round(aws, lanes_without_functions, request())
    finally:
        stop.set()
    time.sleep(2)  # the other shard's last try
    while True:
        status = round_status(aws, aws.bucket(lanes_without_functions.bucket), "r-1", lanes_without_functions)
        if len(status.get("gave_up", [])) == 2:
            break
        time.sleep(0.5)
        aws.sqs.receive_message(QueueUrl=lane.queue_url)  # who asks makes the queue move its dead letters
    assert (status["tries"], status["log_group"]) == (3, f"/aws/lambda/{lane.function_name}")
    assert status["next_step"] == "orchestrator resume --round r-1 --redrive"
    working()
    resume_round(aws, lanes_without_functions, "r-1", redrive=True)
    assert read_global(aws, lanes_without_functions) == expected


def test_broken_messages_block_nobody_and_end_in_the_dead_letter_queue(
    aws: AwsClients, lanes_without_functions: Deployment, lane: Lane, working: Any
) -> None:
    expected = submitted(aws, lanes_without_functions)
    foreign = ShardJob("r-gone", "ab" * 32, 1).to_json()  # of a round that is over: dropped
    for body in ("not a job", "{}", "[" * 1000, foreign):
        aws.sqs.send_message(QueueUrl=lane.queue_url, MessageBody=body)
    working(8)
    start_round(aws, lanes_without_functions, request())
    assert read_global(aws, lanes_without_functions) == expected
    dead: set[str] = set()
    deadline = time.monotonic() + 20
    while len(dead) < 3 and time.monotonic() < deadline:
        found = aws.sqs.receive_message(QueueUrl=lane.dead_letter_queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        dead |= {message["Body"] for message in found.get("Messages", [])}
    assert dead == {"not a job", "{}", "[" * 1000}


@pytest.mark.parametrize("happened", ["replaced", "deleted"])
@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_an_update_that_changes_after_pinning_is_noticed_by_every_shard_and_never_averaged_in_part(
    aws: AwsClients, lanes_without_functions: Deployment, lane: Lane, happened: str, shape: tuple[int, int]
) -> None:
    submitted(aws, lanes_without_functions, shape)

    def drive() -> None:
        with contextlib.suppress(RoundFailed):
            start_round(aws, lanes_without_functions, request())

    stop = threading.Thread(target=drive, daemon=True)
    stop.start()
    while not aws.sqs.receive_message(QueueUrl=lane.queue_url, VisibilityTimeout=0).get("Messages"):
        time.sleep(0.05)
    manifest = manifest_of(aws, lanes_without_functions)
    bucket = lanes_without_functions.bucket
    put_bytes(aws, lanes_without_functions, "late", update_bytes(weights(9, shape)))  # changes nothing
    if happened == "replaced":
        put_bytes(aws, lanes_without_functions, "b", update_bytes(weights(77, shape), 2))
    else:
        aws.s3.delete_object(Bucket=bucket, Key=update_key("r-1", "b"))
    told: list[Any] = []

    class Told:
        def send_message(self, *, QueueUrl: str, MessageBody: str) -> None:  # noqa: N803
            told.append(json.loads(MessageBody))

    sqs: Any = Told()
    doer = ShardWorker(aws.bucket(bucket), sqs, "unused")
    for shard in range(2):
        job = ShardJob("r-1", manifest.sha256, shard)
        assert doer.run(job.to_json(), receive_count=1, worker="w"), "nobody can do it, so it is not delivered again"
    assert [(r["shard"], r["status"], r["error_kind"], r["client"]) for r in told] == [
        (shard, "failed", "UpdateChanged", "b") for shard in range(2)
    ]
    assert all(f"was {happened} after the round pinned it" in r["error"] for r in told)
    for result in told:
        aws.sqs.send_message(QueueUrl=lanes_without_functions.result_queue_url, MessageBody=json.dumps(result))
    stop.join(30)
    assert round_status(aws, aws.bucket(bucket), "r-1")["state"] == "failed"
