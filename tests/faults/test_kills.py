"""The orchestrator is killed at every step of a round, as by `kill -9`, and the round is finished by the next one."""

from __future__ import annotations

import collections
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lambdas import shard_average
from lambdas.protocol.keys import coordinator_key, latest_key, report_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.manifest import RoundManifest
from lambdas.shard_average import ShardWorker
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.rounds import lease, queues, wait
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import resume_round, start_round
from orchestrator.rounds.status import round_status
from tests.support.kill_points import KillPoint, document
from tests.support.rounds import LARGE, expected_file, objects, put, queued, read, read_global, uploads, weights

SHARDS = {"objects": 4, "multipart": 2}
SHAPES = {"objects": (3, 5), "multipart": LARGE}
CLIENTS = {"a": 5, "b": 2}

# How many shards are averaged before the kill, as a share of them; None: the worker is not held back.
NONE, HALF, ALL = 0.0, 0.5, 1.0

# In the order in which a round comes by. Some exist with one sink only.
BOTH: dict[str, tuple[KillPoint, float]] = {
    "opened": (KillPoint("after", "PutObject", r"round\.json"), NONE),
    "lease taken": (KillPoint("after", "PutObject", r"coordinator\.json"), NONE),
    "pinned, nothing written": (KillPoint("before", "PutObject", r"manifest\.json"), NONE),
    "planned": (KillPoint("after", "PutObject", r"manifest\.json"), NONE),
    "half queued": (KillPoint("after", "SendMessageBatch"), NONE),
    "queued": (KillPoint("before", "ReceiveMessage"), NONE),
    "half done": (KillPoint("after", "DeleteMessageBatch"), HALF),
    "all shards there": (KillPoint("before", "PutObject", r"coordinator\.json", nth=2), ALL),
    "publication decided": (KillPoint("after", "PutObject", r"coordinator\.json", nth=2), ALL),
    "before latest moves": (KillPoint("before", "PutObject", r"latest\.json"), ALL),
    "latest moved": (KillPoint("after", "PutObject", r"latest\.json"), ALL),
    "before the report": (KillPoint("before", "PutObject", r"report\.json"), ALL),
    "reported": (KillPoint("after", "PutObject", r"report\.json"), ALL),
}
MULTIPART: dict[str, tuple[KillPoint, float]] = {
    "before the upload is created": (KillPoint("before", "CreateMultipartUpload"), NONE),
    "upload created, not written down": (KillPoint("after", "CreateMultipartUpload"), NONE),
    "before completing": (KillPoint("before", "CompleteMultipartUpload"), ALL),
    "completed, but never told": (KillPoint("after", "CompleteMultipartUpload"), ALL),
}
OBJECTS: dict[str, tuple[KillPoint, float]] = {
    "before assembling": (KillPoint("before", "PutObject", r"global\.safetensors"), ALL),
    "assembled, but never told": (KillPoint("after", "PutObject", r"global\.safetensors"), ALL),
    "before the shards are deleted": (KillPoint("before", "DeleteObjects"), ALL),
}
# These do not depend on the sink; one is enough.
_ONCE = ("lease taken", "latest moved", "before the report", "reported")
CASES = [
    *[("objects", name, *case) for name, case in {**BOTH, **OBJECTS}.items()],
    *[("multipart", name, *case) for name, case in {**BOTH, **MULTIPART}.items() if name not in _ONCE],
]


class CountingWorker:
    """One worker on a lane, in a thread: does jobs as far as it is allowed to, and counts what it averages."""

    def __init__(self, aws: AwsClients, deployment: Deployment, shards: int) -> None:
        self._clients, self._deployment, self._lane = aws, deployment, deployment.lanes[shards]
        self.averaged: collections.Counter[int] = collections.Counter()
        self._allowed = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def allow(self, jobs: float) -> None:
        """Let so many shards be averaged in all."""
        self._allowed = jobs

    def average(self, manifest: RoundManifest, shard: int, *arguments: Any) -> Any:
        self.averaged[shard] += 1
        return AVERAGE(manifest, shard, *arguments)

    def _work(self) -> None:
        sqs, url = self._clients.sqs, self._lane.queue_url
        worker = ShardWorker(Bucket(self._clients.s3, self._deployment.bucket), sqs, self._deployment.result_queue_url)
        while not self._stop.is_set():
            if self.averaged.total() >= self._allowed:
                self._stop.wait(0.02)
                continue
            for message in sqs.receive_message(
                QueueUrl=url, WaitTimeSeconds=0, MessageSystemAttributeNames=["ApproximateReceiveCount"]
            ).get("Messages", []):
                count = int(message["Attributes"]["ApproximateReceiveCount"])
                if worker.run(message["Body"], receive_count=count, worker="test"):
                    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])

    def __enter__(self) -> CountingWorker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


AVERAGE = shard_average.average_shard


@pytest.fixture
def worker(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[CountingWorker]:
    monkeypatch.setattr(queues, "_WAIT_S", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(lease, "WATCH_EVERY_S", 0.1)
    monkeypatch.setattr(queues, "_BATCH", 10)
    with CountingWorker(aws, lanes_without_functions, SHARDS[request.getfixturevalue("sink")]) as counting:
        monkeypatch.setattr(shard_average, "average_shard", counting.average)
        yield counting


def killed(deployment: Deployment, request: RoundRequest, point: KillPoint) -> int:
    """Run an orchestrator until it dies at the kill point; its process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.kill_points"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, err = process.communicate(document(deployment, request, point), timeout=60)
    assert process.returncode == -signal.SIGKILL, f"it was not killed at {point}:\n{out}\n{err}"
    return process.pid


@pytest.mark.parametrize(("sink", "name", "point", "done"), CASES, ids=[f"{c[0]}: {c[1]}" for c in CASES])
def test_a_round_whose_orchestrator_was_killed_is_finished_by_the_next_one(
    aws: AwsClients,
    lanes_without_functions: Deployment,
    worker: CountingWorker,
    sink: str,
    name: str,
    point: KillPoint,
    done: float,
) -> None:
    deployment, shards = lanes_without_functions, SHARDS[sink]
    updates = {client: (weights(ord(client), SHAPES[sink]), examples) for client, examples in CLIENTS.items()}
    for client, (values, examples) in updates.items():
        put(aws, deployment, client, values, examples)
    request = RoundRequest("digits", "r-1", shards, min_clients=2, timeout_s=30.0)
    worker.allow(done * shards)
    pid = killed(deployment, request, point)
    averaged_before = dict(worker.averaged)
    assert len(averaged_before) == done * shards

    worker.allow(float("inf"))
    if name == "opened":  # nobody has ever driven it
        assert round_status(aws, aws.bucket(deployment.bucket), "r-1")["state"] == "open"
    elif name != "reported":
        stopped = round_status(aws, aws.bucket(deployment.bucket), "r-1")["stopped"]
        assert f"process {pid} on " in stopped
        assert "`orchestrator resume --round r-1` continues it" in stopped
    if (
        point.when == "before"
    ):  # the same start-round is as good as resume, and the options that it repeats do not matter
        report = start_round(aws, deployment, request)
    else:
        report = resume_round(aws, deployment, "r-1", timeout_s=30.0)
    if name == "reported":
        assert len(report.document["coordinators"]) == 1
    elif name != "opened":
        assert report.document["coordinators"][0]["pid"] == pid
        assert len(report.document["coordinators"]) == 2

    assert read_global(aws, deployment) == expected_file(updates)
    assert report.document["status"] == "published"
    assert read(aws, deployment, report_key("r-1")) == report.to_bytes()
    latest = LatestModel.from_bytes(read(aws, deployment, latest_key("digits")))
    assert (latest.round_id, latest.key) == ("r-1", "models/digits/r-1/global.safetensors")
    # Jobs that were queued twice come late, and change nothing.
    while queued(aws, deployment):
        threading.Event().wait(0.05)
    assert worker.averaged == dict.fromkeys(range(shards), 1), "a shard that was done was averaged again"
    assert uploads(aws, deployment) == 0
    assert objects(aws, deployment, "rounds/r-1/shards/") == []
    left = [key for key in objects(aws, deployment) if "/updates/" not in key]
    assert left == [
        "models/digits/latest.json", "models/digits/r-1/global.safetensors", coordinator_key("r-1"),
        "rounds/r-1/manifest.json", "rounds/r-1/report.json", "rounds/r-1/round.json",
    ]  # fmt: skip
