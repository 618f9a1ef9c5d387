"""Where strangers' bytes meet a user or a worker: files to submit, models to fetch, messages in queues, arguments."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.keys import global_key, latest_key, manifest_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.manifest import Output
from lambdas.protocol.messages import ShardJob, ShardResult
from lambdas.shard_average import ShardWorker
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.cli import main
from orchestrator.client.fetch import fetch
from orchestrator.client.sources import from_file
from orchestrator.client.update_file import write_update
from orchestrator.deployment import terraform
from orchestrator.rounds import queues
from tests.support.hostile import COUNTS, FILE, TABLE, changed_bytes, hostile, survives, values
from tests.support.manifests import BUCKET, MODEL, ROUND, Update, manifest_of, table_of
from tests.support.s3 import MemoryS3
from tests.support.servers import RangeServer
from tests.support.sqs import MemorySqs


class _Runs:
    """A pickle that would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def _submit(path: Path) -> None:
    write_update(from_file(path), 3, io.BytesIO())


def test_a_hostile_safetensors_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    @given(changed_bytes(FILE + bytes(TABLE.nbytes)))
    def run(body: bytes) -> None:
        path.write_bytes(body)
        survives("submit safetensors", lambda: _submit(path))

    run()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_pytorch_file_is_refused_in_a_sentence_and_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    path, marker = tmp_path / "model.pt", tmp_path / "it-ran"
    torch.save({"w": torch.ones(3, 2), "n": torch.tensor(7)}, path, _use_new_zipfile_serialization=zipped)
    good = path.read_bytes()
    evil = pickle.dumps({"w": _Runs(f"touch {marker}")}, protocol=2)

    @given(changed_bytes(good) | st.just(evil) | changed_bytes(evil))
    def run(body: bytes) -> None:
        path.write_bytes(body)
        survives("submit .pt", lambda: _submit(path))

    run()
    assert not marker.exists()


def test_a_hostile_pointer_or_global_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    pointer = LatestModel("m", "r-1", global_key("m", "r-1"), '"e"', 9, "ab" * 32, 1.0, 2.0)
    whole = FILE + bytes(TABLE.nbytes)

    @given(hostile(json.loads(pointer.to_bytes())), changed_bytes(whole) | st.just(whole))
    def run(latest: bytes, model: bytes) -> None:
        s3: Any = MemoryS3(objects={latest_key("m"): latest, global_key("m", "r-1"): model})
        survives("fetch", lambda: fetch(Bucket(s3, "bucket"), "m", tmp_path / "global.safetensors"))
        survives("fetch", lambda: fetch(Bucket(s3, "bucket"), "m", tmp_path / "global.safetensors", round_id="r-1"))

    run()
    assert {path.name for path in tmp_path.iterdir()} <= {"global.safetensors"}, "no temporary file is left"


def test_a_hostile_job_never_stops_a_worker(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    updates = [Update(b"\0" * 28, 3), Update(b"\1" * 28, 9)]
    manifest = manifest_of(table_of(("F32", 7)), updates, shards=2, output=Output("objects", global_key(MODEL, ROUND)))
    stored = {p.key: u.body for p, u in zip(manifest.participants, updates, strict=True)}
    job = ShardJob(ROUND, manifest.sha256, 1)
    with RangeServer(stored) as server:
        s3: Any = MemoryS3(server, {manifest_key(ROUND): manifest.to_bytes()})
        sqs: Any = MemorySqs()
        worker = ShardWorker(Bucket(s3, BUCKET), sqs, "results")

        @given(hostile(json.loads(job.to_json())))
        def bodies(body: bytes) -> None:
            text = body.decode("utf-8", "replace")
            assert isinstance(survives("job in a queue", lambda: worker.run(text, receive_count=1, worker="w")), bool)

        @given(hostile(json.loads(manifest.to_bytes())))
        def manifests(body: bytes) -> None:
            s3.objects[manifest_key(ROUND)] = body
            made = replace(job, manifest_sha256=sha256_hex(body)).to_json()
            sqs.queues.clear()
            assert isinstance(
                survives("manifest of a job", lambda: worker.run(made, receive_count=1, worker="w")), bool
            )
            for result in sqs.bodies("results"):
                assert len(result) < 10_000, "it would not fit into a message"
                ShardResult.from_bytes(result)

        bodies()
        manifests()


class EveryRoundHasEnded(MemoryS3):
    """Has a report of every round."""

    def head_object(self, **_: Any) -> dict[str, Any]:
        return {"ETag": '"e"', "ContentLength": 0}


def test_a_hostile_result_is_dropped_and_hides_no_good_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    digest = "ab" * 32
    good = ShardResult(round_id="r-1", manifest_sha256=digest, shard=1, status="done", etag='"e"', sha256=digest)
    s3: Any = EveryRoundHasEnded()
    deployment: Any = Deployment("local", "us-east-1", "bucket", None, "results", {})
    manifest: Any = SimpleNamespace(round_id="r-1", sha256=digest)

    @given(st.lists(hostile(json.loads(good.to_json())), min_size=1, max_size=3))
    def run(bodies: list[bytes]) -> None:
        sqs: Any = MemorySqs()
        for body in (*(body.decode("utf-8", "replace") for body in bodies), good.to_json()):
            sqs.send_message(QueueUrl=deployment.result_queue_url, MessageBody=body)
        results = queues.Results(AwsClients(s3, sqs), deployment, manifest)
        found = survives("result in a queue", results.receive)
        assert found[-1] == good
        assert sqs.queue(deployment.result_queue_url) == []

    run()


def test_hostile_arguments_end_in_a_sentence_and_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDAGG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terraform, "outputs", lambda env: {})  # nothing is deployed
    (tmp_path / "m.safetensors").write_bytes(FILE + bytes(TABLE.nbytes))
    texts = (
        values().filter(lambda value: isinstance(value, str | int | float)).map(str) | st.text(max_size=30)
    ).filter(lambda text: "\0" not in text)
    commands = {
        "submit": ["FILE", "--round", "--client", "--examples", "--wire"],
        "fetch": ["--model", "--round"],
        "start-round": ["--model", "--round", "--shards", "--min-clients", "--expect", "--deadline", "--timeout"],
        "status": ["--round"],
        "verify": ["--round", "--shards", "--manifest-sha256"],
        "plan": ["--model-bytes", "--clients", "--deadline", "--budget"],
    }

    @given(st.sampled_from(sorted(commands)), st.lists(texts, min_size=8, max_size=8))
    def run(command: str, given_texts: list[str]) -> None:
        COUNTS["arguments"] += 1
        arguments = [command]
        for option, text in zip(commands[command], given_texts, strict=False):
            arguments += [f"{option}={text}"] if option != "FILE" else [str(tmp_path / "m.safetensors")]
        result = CliRunner().invoke(main.main, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
        assert result.exit_code in range(10)

    run()
