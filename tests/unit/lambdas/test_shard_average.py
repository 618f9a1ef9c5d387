"""A worker's answer to every kind of job: what it stores, what it reports, who acknowledges."""

from __future__ import annotations

import base64
import json
import logging
import struct
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lambdas import shard_average
from lambdas import worker as base
from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.keys import coordinator_key, global_key, manifest_key, norms_key, shard_key
from lambdas.protocol.lease import CoordinatorRecord, Process
from lambdas.protocol.manifest import Output
from lambdas.protocol.messages import ShardJob, ShardResult
from lambdas.protocol.safetensors import global_header
from lambdas.shard_average import ShardWorker
from lambdas.storage.bucket import Bucket
from lambdas.storage.updates import Retry, UpdateReader
from tests.support import servers
from tests.support.aws import client_error
from tests.support.manifests import BUCKET, MODEL, ROUND, Update, manifest_of, table_of
from tests.support.s3 import MemoryS3, Upload
from tests.support.servers import RangeServer
from tests.support.sqs import MemorySqs

VALUES = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 9.0]]
WEIGHTS = [1, 3]
RESULTS = "https://queue/results"
MEANS = [4.0, 5.0, 6.0, 7.75]

pytestmark = pytest.mark.usefixtures("tiny_parts")


def packed(values) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


class Scene:
    """A round of two clients in two shards, and a worker."""

    def __init__(self, server: RangeServer, output: Output | None = None, values=VALUES) -> None:
        self.server = server
        self.updates = [Update(packed(v), w) for v, w in zip(values, WEIGHTS, strict=True)]
        self.manifest = manifest_of(table_of(("F32", 4)), self.updates, shards=2, output=output)
        for participant, update in zip(self.manifest.participants, self.updates, strict=True):
            server.objects[participant.key] = update.body
        self.s3 = MemoryS3(server, uploads={"upload-1": Upload(global_key(MODEL, ROUND), "SHA256")})
        self.sqs = MemorySqs()
        self.store(self.manifest)
        self.worker = ShardWorker(Bucket(self.s3, BUCKET), self.sqs, RESULTS, memory_mb=256)

    def store(self, manifest) -> None:
        self.s3.objects[manifest_key(ROUND)] = manifest.to_bytes()

    def job(self, shard: int = 0, **changes) -> str:
        return replace(ShardJob(ROUND, sha256_hex(self.manifest.to_bytes()), shard), **changes).to_json()

    def run(self, body: str | None = None, receive_count: int = 1) -> bool:
        return self.worker.run(body or self.job(), receive_count=receive_count, worker="fn/req-1")

    @property
    def result(self) -> ShardResult:
        (body,) = self.sqs.bodies(RESULTS)
        return ShardResult.from_bytes(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(
        shard_average,
        "UpdateReader",
        lambda bucket, at_once: UpdateReader(
            bucket, at_once=at_once, retry=Retry(2, 0.0, 0.0, 0.5), sleep=lambda _: None
        ),
    )
    with RangeServer() as running:
        yield running


@pytest.fixture
def scene(server):
    return Scene(server)


def test_a_shard_is_averaged_stored_and_reported(scene) -> None:
    assert scene.run(scene.job(1)) is True
    data = packed(MEANS[2:])
    assert scene.s3.objects[shard_key(ROUND, 1, 2)] == data
    result = scene.result
    assert (result.status, result.shard, result.round_id) == ("done", 1, ROUND)
    assert result.sha256 == sha256_hex(data)
    assert (result.memory_mb, result.worker, result.receive_count) == (256, "fn/req-1", 1)
    stats = result.stats
    assert (stats.bytes_read, stats.bytes_written) == (2 * 8, 8)
    assert (stats.gets, stats.puts, stats.retries) == (2 + 2, 1, 0)
    assert stats.wall_s > 0
    assert stats.wall_s == pytest.approx(stats.read_s + stats.compute_s + stats.write_s, abs=1e-5)
    assert stats.peak_rss_mb > 1


def test_both_shards_together_are_the_global_model(server) -> None:
    key = global_key(MODEL, ROUND)
    scene = Scene(server, Output("multipart", key, "upload-1"))
    assert scene.run(scene.job(1))
    assert scene.run(scene.job(0))
    parts = [scene.s3.uploads["upload-1"].parts[n] for n in (1, 2)]
    assert b"".join(parts) == global_header(scene.manifest.table) + packed(MEANS)


def test_a_redelivery_of_a_finished_shard_reads_nothing_again(scene) -> None:
    assert scene.run()
    done = scene.result
    scene.sqs.queues.clear()
    asked = len(scene.server.requests)
    assert scene.run(receive_count=2) is True
    assert len(scene.server.requests) == asked
    assert scene.result.status == "done"
    assert scene.result.etag == done.etag
    assert scene.result.sha256 == done.sha256, "S3 keeps the digest"
    assert (scene.result.stats.puts, scene.result.stats.bytes_written) == (0, 0)


def test_a_redelivery_of_an_unfinished_shard_does_the_work(scene) -> None:
    assert scene.run(scene.job(attempt=1), receive_count=3) is True
    assert scene.s3.objects[shard_key(ROUND, 0, 2)] == packed(MEANS[:2])


def test_an_upload_that_fails_leaves_the_message_in_the_queue(scene) -> None:
    def fail(**_):
        raise client_error("InternalError")

    scene.s3.put_object = fail
    assert scene.run() is False
    assert (scene.result.status, scene.result.error_kind) == ("retrying", "StorageUnavailable")


def test_a_full_disk_leaves_the_message_in_the_queue(scene, monkeypatch, caplog) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_average.ShardSink, "write", full)
    assert scene.run() is False
    assert scene.result.status == "retrying"
    assert "No space left" in (scene.result.error or "")
    assert any(r.levelno == logging.ERROR and r.exc_info for r in caplog.records)


def test_a_storage_that_stays_away_leaves_the_message_in_the_queue(scene) -> None:
    scene.server.script = [servers.error("503 Slow Down", "SlowDown")] * 20
    assert scene.run() is False
    assert scene.result.error_kind == "StorageUnavailable"


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda s: s.server.objects.pop(s.manifest.participants[1].key), "UpdateChanged", "was deleted"),
        (
            lambda s: s.server.objects.update({s.manifest.participants[1].key: b"x" * 32}),
            "UpdateChanged",
            "was replaced",
        ),
    ],
)
def test_a_bad_update_is_reported_once_and_not_tried_again(scene, spoil, kind, words) -> None:
    spoil(scene)
    assert scene.run() is True
    assert (scene.result.status, scene.result.error_kind, scene.result.client) == ("failed", kind, "c-00001")
    assert words in (scene.result.error or "")


def test_a_nan_is_reported_with_client_and_tensor(server) -> None:
    scene = Scene(server, values=[[1.0, 2.0, 3.0, 4.0], [1.0, float("nan"), 1.0, 1.0]])
    assert scene.run(scene.job(0)) is True
    assert (scene.result.status, scene.result.error_kind) == ("failed", "NonFiniteUpdate")
    assert (scene.result.client, scene.result.error) == ("c-00001", "tensor 't0': client c-00001 has NaN")
    assert not [k for k in scene.s3.objects if "shards/" in k]


def test_all_clients_that_the_first_bad_piece_shows_are_reported_at_once(server) -> None:
    scene = Scene(server, values=[[1.0, float("inf"), 3.0, 4.0], [float("nan"), 1.0, 1.0, 1.0]])
    scene.run(scene.job(0))
    assert [(b.client, b.kind) for b in scene.result.bad] == [
        ("c-00000", "NonFiniteUpdate"),
        ("c-00001", "NonFiniteUpdate"),
    ]
    scene = Scene(server)
    for participant in scene.manifest.participants:
        server.objects[participant.key] = b"x" * 32
    scene.run(scene.job(0))
    assert [(b.client, b.kind) for b in scene.result.bad] == [
        ("c-00000", "UpdateChanged"),
        ("c-00001", "UpdateChanged"),
    ]
    assert all("was replaced" in b.reason for b in scene.result.bad)


def test_sums_of_squares_go_into_the_result(scene) -> None:
    scene.run(scene.job(1))
    assert scene.result.norms is not None
    assert np.frombuffer(base64.b64decode(scene.result.norms), "<f8").tolist() == [9.0 + 16.0, 49.0 + 81.0]


def test_where_the_round_depends_on_them_sums_of_squares_are_stored_before_the_shard(scene) -> None:
    scene.manifest = replace(scene.manifest, norms="objects")
    scene.store(scene.manifest)
    scene.run(scene.job(1))
    assert scene.result.norms is None
    assert struct.unpack("<2d", scene.s3.objects[norms_key(ROUND, 1, 2, 0)]) == (25.0, 130.0)
    assert list(scene.s3.objects)[-2:] == [norms_key(ROUND, 1, 2, 0), shard_key(ROUND, 1, 2)]
    assert scene.result.stats.puts == 2


@pytest.mark.parametrize(
    "make_old",
    [
        lambda s: s.s3.objects.pop(manifest_key(ROUND)),
        lambda s: s.store(replace(s.manifest, created_at=2.0)),
        lambda s: s.s3.uploads.clear(),
    ],
)
def test_a_job_of_a_round_that_is_over_is_dropped_in_silence(server, make_old) -> None:
    scene = Scene(server, Output("multipart", global_key(MODEL, ROUND), "upload-1"))
    make_old(scene)
    assert scene.run() is True
    assert scene.sqs.bodies(RESULTS) == []


def test_a_manifest_that_cannot_be_read_now_is_tried_again(scene) -> None:
    scene.s3.fail = [client_error("SlowDown")]
    assert scene.run() is False
    assert scene.result.status == "retrying"


def test_a_shard_that_the_manifest_does_not_have_is_a_failed_job(scene) -> None:
    assert scene.run(scene.job(2)) is True
    assert (scene.result.status, scene.result.error_kind) == ("failed", "InvalidContract")


@pytest.mark.parametrize("body", ["", "{}", "[1]", "not json", '{"schema":99}'])
def test_a_message_that_is_no_job_goes_to_the_dead_letter_queue(scene, body) -> None:
    assert scene.worker.run(body, receive_count=1, worker="w") is False
    assert scene.sqs.bodies(RESULTS) == []
    assert scene.server.requests == []


def test_a_finished_shard_needs_no_result_message(scene) -> None:
    scene.sqs.fail = [client_error("AccessDenied", "SendMessage")]
    assert scene.run() is True
    assert scene.s3.objects[shard_key(ROUND, 0, 2)] == packed(MEANS[:2])


def test_a_failure_that_cannot_be_reported_stays_in_the_queue(scene) -> None:
    scene.server.objects.pop(scene.manifest.participants[0].key)
    scene.sqs.fail = [client_error("AccessDenied", "SendMessage")]
    assert scene.run() is False


def test_the_handler_names_the_records_that_should_come_again(scene, monkeypatch) -> None:
    monkeypatch.setattr(base, "worker_from_environment", lambda kind: scene.worker)
    handler = base.handler_for(ShardWorker, "elsewhere")
    records = [
        {"messageId": "good", "body": scene.job(0), "attributes": {"ApproximateReceiveCount": "1"}},
        {"messageId": "bad", "body": "junk", "attributes": {"ApproximateReceiveCount": "1"}},
        {"messageId": "again", "body": scene.job(1), "attributes": {"ApproximateReceiveCount": "4"}},
    ]
    context = SimpleNamespace(function_name="fn", aws_request_id="req-9")
    assert handler({"Records": records}, context) == {"batchItemFailures": [{"itemIdentifier": "bad"}]}
    results = [json.loads(body) for body in scene.sqs.bodies(RESULTS)]
    assert [(r["shard"], r["receive_count"], r["worker"]) for r in results] == [(0, 1, "fn/req-9"), (1, 4, "fn/req-9")]


def test_a_failed_record_is_delivered_again_soon_from_the_queue_that_it_came_from(scene, monkeypatch) -> None:
    monkeypatch.setattr(base, "worker_from_environment", lambda kind: scene.worker)
    handler = base.handler_for(ShardWorker, "elsewhere")
    jobs = "https://queue/shards-4"
    scene.sqs.send_message(QueueUrl=jobs, MessageBody="junk")
    (received,) = scene.sqs.receive_message(QueueUrl=jobs)["Messages"]
    record = {
        "messageId": "bad", "body": "junk", "attributes": {"ApproximateReceiveCount": "3"},
        "receiptHandle": received["ReceiptHandle"],
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:shards-4",
    }  # fmt: skip
    handler({"Records": [record]}, SimpleNamespace())
    (message,) = scene.sqs.queue(jobs)
    assert 6 <= message.hidden_s <= 12  # 3 s, doubled twice, and at least half of it


def driven(scene, state: str = "running", resumed: bool = False) -> None:
    """Put a coordinator's record beside the manifest."""
    process = Process("host", 1, "machine", "", 0.0)
    record = CoordinatorRecord(ROUND, "token", process, 30.0, state, earlier=(process,) if resumed else ())
    scene.s3.objects[coordinator_key(ROUND)] = record.to_bytes()


@pytest.mark.parametrize("state", ["publishing", "failed", "aborted"])
def test_a_job_of_a_round_that_is_over_is_dropped_without_reading_any_update(scene, state) -> None:
    driven(scene, state)
    assert scene.run() is True
    assert scene.sqs.bodies(RESULTS) == []
    assert scene.server.requests == []


def test_a_shard_that_is_done_is_not_averaged_again_when_its_round_was_resumed(scene) -> None:
    driven(scene, resumed=True)
    assert scene.run(scene.job(1)) is True
    before = len(scene.server.requests)
    assert scene.run(scene.job(1)) is True  # the same job, as it was queued before the coordinator died
    assert len(scene.server.requests) == before
    driven(scene)
    assert scene.run(scene.job(1)) is True  # nothing says that it may be done: it is not looked for
    assert len(scene.server.requests) > before


def test_a_hundred_deliveries_of_one_job_store_the_same_bytes(scene) -> None:
    stored = set()
    for delivery in range(100):
        if delivery % 3:  # every third one finds nothing, as after a lost write
            scene.s3.objects.pop(shard_key(ROUND, 1, 2), None)
        assert scene.run(scene.job(1, attempt=delivery % 2), receive_count=1 + delivery) is True
        stored.add(scene.s3.objects[shard_key(ROUND, 1, 2)])
    assert stored == {packed(MEANS[2:])}


def test_a_function_that_runs_out_of_time_or_memory_says_so_before_it_is_killed(scene, monkeypatch) -> None:
    monkeypatch.setattr(shard_average, "average_shard", lambda *arguments: time.sleep(30))
    assert scene.worker.run(scene.job(), receive_count=2, worker="fn", limit_s=0.2) is False
    assert (scene.result.status, scene.result.receive_count) == ("retrying", 2)
    assert "the function's time ran out" in (scene.result.error or "")
    scene.sqs.queues.clear()

    def exhausted(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(shard_average, "average_shard", exhausted)
    assert scene.run() is False
    assert scene.result.error == "MemoryError"


def test_the_functions_worker_comes_from_the_environment(monkeypatch) -> None:
    for name, value in {
        "FL_BUCKET": "b", "FL_RESULT_QUEUE_URL": "https://q", "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "384", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    level = logging.getLogger().level
    try:
        worker = base.worker_from_environment(ShardWorker)
    finally:
        logging.getLogger().setLevel(level)
    assert (worker.bucket.name, worker.result_queue_url, worker.memory_mb) == ("b", "https://q", 384)
    url = worker.bucket.s3.generate_presigned_url(
        "get_object", Params={"Bucket": "b", "Key": "k", "Range": "bytes=0-1"}
    )
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
