"""S3 answers with errors, cuts bodies short, loses answers or says nothing: for workers and for orchestrators."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.config import Config

from lambdas.protocol.keys import report_key
from lambdas.storage import updates
from lambdas.storage.bucket import Bucket
from orchestrator.aws import clients as clients_module
from orchestrator.aws import s3
from orchestrator.aws.clients import AwsClients, connect
from orchestrator.aws.deployment import Deployment
from orchestrator.client.fetch import fetch
from orchestrator.errors import RoundFailed
from orchestrator.rounds import lease, queues, wait
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import resume_round, start_round
from orchestrator.workers import poll
from tests.support.proxy import Fault, FaultyProxy, cut, error_in_200, hang, lose, refuse
from tests.support.rounds import LARGE, expected_file, objects, put, read, read_global, uploads, weights

SHAPES = {"objects": (3, 5), "multipart": LARGE}
COUNTS = {"a": 5, "b": 2}


@pytest.fixture
def proxy(aws: AwsClients, endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setattr(queues, "_WAIT_S", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.3)
    monkeypatch.setattr(lease, "WATCH_EVERY_S", 0.1)
    with FaultyProxy(endpoint_url) as proxy:
        yield proxy


def through(proxy: FaultyProxy, deployment: Deployment, read_timeout_s: float = 60) -> AwsClients:
    """Clients as users have them, through the proxy; less patient where a test lets S3 be silent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clients_module, "Config", lambda **options: Config(**{**options, "read_timeout": read_timeout_s}))
        return connect(deployment.region, proxy.url)


def submitted(aws: AwsClients, deployment: Deployment, sink: str) -> bytes:
    values = {client: (weights(ord(client), SHAPES[sink]), count) for client, count in COUNTS.items()}
    for client, (value, count) in values.items():
        put(aws, deployment, client, value, count)
    return expected_file(values)


def finish(aws: AwsClients, deployment: Deployment, through_worker: AwsClients) -> dict[str, Any]:
    """Run the round with a worker beside it."""
    lane = deployment.lane(2)
    threading.Thread(
        target=poll.work, args=(through_worker, deployment, [lane]), kwargs={"idle_exit_s": 25}, daemon=True
    ).start()
    request = RoundRequest("digits", "r-1", 2, min_clients=2, timeout_s=40)
    return dict(start_round(aws, deployment, request).document)


WORKER_FAULTS: dict[str, tuple[str, str, Fault, int]] = {
    "reads are refused with 500": ("GET", r"updates/a\.safetensors\?X-Amz", refuse(500, "InternalError"), 2),
    "reads are refused with 503": ("GET", r"updates/.\.safetensors\?X-Amz", refuse(503, "SlowDown"), 3),
    "bodies are cut short": ("GET", r"updates/.\.safetensors\?X-Amz", cut(1_000_003), 3),
    "small bodies are cut short": ("GET", r"updates/.\.safetensors\?X-Amz", cut(3), 2),
    "connections hang": ("GET", r"updates/b\.safetensors\?X-Amz", hang(5), 1),
    "writes are refused with 503": ("PUT", r"partNumber=|/shards/", refuse(503, "SlowDown"), 2),
    "the answer to a write is lost": ("PUT", r"partNumber=|/shards/", lose, 1),
}


@pytest.mark.parametrize(
    ("sink", "fault"),
    [("multipart", name) for name in WORKER_FAULTS] + [("objects", "small bodies are cut short")],
)
def test_a_worker_gets_through_what_s3_does_to_it(
    aws: AwsClients, lanes_without_functions: Deployment, proxy: FaultyProxy, monkeypatch: Any, sink: str, fault: str
) -> None:
    monkeypatch.setattr(updates.UpdateReader.__init__, "__kwdefaults__", {
        **updates.UpdateReader.__init__.__kwdefaults__, "retry": updates.Retry(timeout_s=0.5),
    })  # fmt: skip
    expected = submitted(aws, lanes_without_functions, sink)
    spoiled = through(proxy, lanes_without_functions)
    proxy.spoil(*WORKER_FAULTS[fault])
    report = finish(aws, lanes_without_functions, spoiled)
    assert proxy.spoiled == WORKER_FAULTS[fault][3], "the fault did not happen"
    assert read_global(aws, lanes_without_functions) == expected
    assert report["redelivered"] == [], "no job had to be delivered again"
    if "GET" in WORKER_FAULTS[fault]:
        assert report["totals"]["retries"] == proxy.spoiled
        # Resumed from the byte reached: what was read once is not read again.
        assert report["totals"]["bytes_read"] == sum(len(expected_part(expected)) for _ in COUNTS)


def expected_part(file: bytes) -> bytes:
    """The values in a file, without its header."""
    return file[8 + int.from_bytes(file[:8], "little") :]


ORCHESTRATOR_FAULTS: dict[str, tuple[str, str, str, Fault, int]] = {
    "pinning meets 503": ("objects", "GET", r"updates/.\.safetensors", refuse(503, "SlowDown"), 2),
    "headers are cut short": ("objects", "GET", r"updates/.\.safetensors", cut(20), 3),
    "documents are cut short": ("objects", "GET", r"round\.json|coordinator\.json|manifest\.json", cut(5), 4),
    "the manifest's answer is lost": ("multipart", "PUT", r"manifest\.json", lose, 1),
    "the lease's answer is lost": ("objects", "PUT", r"coordinator\.json", lose, 2),
    "completing fails inside a 200": ("multipart", "POST", r"uploadId=", error_in_200, 2),
    "completing is answered never": ("multipart", "POST", r"uploadId=", lose, 1),
    "completing meets a conflict": ("multipart", "POST", r"uploadId=", refuse(409, "ConditionalRequestConflict"), 2),
    "shards are cut short": ("objects", "GET", r"/shards/", cut(7), 3),
    "the model's answer is lost": ("objects", "PUT", r"global\.safetensors", lose, 1),
    "latest's answer is lost": ("objects", "PUT", r"latest\.json", lose, 1),
    "the report's answer is lost": ("objects", "PUT", r"report\.json", lose, 1),
    "S3 is silent": ("objects", "PUT", r"manifest\.json", hang(8), 1),
}


@pytest.mark.parametrize("fault", ORCHESTRATOR_FAULTS)
def test_an_orchestrator_gets_through_what_s3_does_to_it(
    aws: AwsClients, lanes_without_functions: Deployment, proxy: FaultyProxy, tmp_path: Any, fault: str
) -> None:
    sink, *rule = ORCHESTRATOR_FAULTS[fault]
    expected = submitted(aws, lanes_without_functions, sink)
    spoiled = through(proxy, lanes_without_functions, read_timeout_s=5)  # more than SQS long polls for
    proxy.spoil(*rule)
    report = finish(spoiled, lanes_without_functions, aws)
    assert proxy.spoiled == rule[3], "the fault did not happen"
    assert report["status"] == "published"
    assert len(report["coordinators"]) == 1
    assert read_global(aws, lanes_without_functions) == expected
    assert uploads(aws, lanes_without_functions) == 0
    assert objects(aws, lanes_without_functions, "rounds/r-1/shards/") == []
    assert read(aws, lanes_without_functions, report_key("r-1"))


def test_a_download_of_the_model_continues_where_it_was_cut(
    aws: AwsClients, lanes_without_functions: Deployment, proxy: FaultyProxy, tmp_path: Any
) -> None:
    expected = submitted(aws, lanes_without_functions, "multipart")
    finish(aws, lanes_without_functions, aws)
    spoiled = through(proxy, lanes_without_functions)
    proxy.spoil("GET", r"global\.safetensors", cut(4_000_000), 2)
    fetch(Bucket(spoiled.s3, lanes_without_functions.bucket), "digits", tmp_path / "m")
    assert proxy.spoiled == 2
    assert (tmp_path / "m").read_bytes() == expected


def test_an_s3_that_never_recovers_ends_the_tries_and_the_round_can_go_on_later(
    aws: AwsClients, lanes_without_functions: Deployment, proxy: FaultyProxy, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lambdas.storage.deliveries.RETRY_BASE_S", 0.01)
    monkeypatch.setattr(updates.UpdateReader.__init__, "__kwdefaults__", {
        **updates.UpdateReader.__init__.__kwdefaults__, "retry": updates.Retry(attempts=2, base_s=0.01),
    })  # fmt: skip
    lane, sqs = lanes_without_functions.lane(2), aws.sqs
    arn = sqs.get_queue_attributes(QueueUrl=lane.dead_letter_queue_url, AttributeNames=["QueueArn"])["Attributes"]
    policy = f'{{"deadLetterTargetArn":"{arn["QueueArn"]}","maxReceiveCount":"{lane.max_receive_count}"}}'
    sqs.set_queue_attributes(QueueUrl=lane.queue_url, Attributes={"RedrivePolicy": policy})
    expected = submitted(aws, lanes_without_functions, "objects")
    spoiled = through(proxy, lanes_without_functions)
    proxy.spoil("GET", r"updates/a\.safetensors\?X-Amz", refuse(503, "SlowDown"), 10_000)
    gave_up = (
        r"shard \d of 2 failed 3 times, last cause: Reading .*client a.*503 SlowDown.*resume --round r-1 --redrive"
    )
    with pytest.raises(RoundFailed, match=gave_up):
        finish(aws, lanes_without_functions, spoiled)
    proxy.rules.clear()
    threading.Thread(
        target=poll.work, args=(spoiled, lanes_without_functions, [lane]), kwargs={"idle_exit_s": 3}, daemon=True
    ).start()
    report = resume_round(aws, lanes_without_functions, "r-1", redrive=True, timeout_s=30).document
    assert report["status"] == "published"
    assert read_global(aws, lanes_without_functions) == expected
    assert s3.exists(aws.bucket(lanes_without_functions.bucket), report_key("r-1"))
