"""Rounds end to end: Terraform's lanes, Lambda functions, SQS, S3, and the command line in a second terminal."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lambdas.protocol.tensor_table import ITEMSIZE
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.client.api import Client
from orchestrator.planning.lane_size import size_lane
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round
from orchestrator.workers import poll
from tests.support.deployed import CLIENTS, MODEL_BYTES, SHARD_COUNTS, Functions, Terminal, wait_until
from tests.support.models import StateDict, reference_average, state_dict

# Above 8 x 5 MiB the shards are parts of one multipart upload for every M here; 100 rows are far below.
LARGE, SMALL = 10_600, 100
COUNTS = {"alpha": 120, "bravo": 7, "charlie": 1, "delta": 3001}


def _push(deployed: Deployment, model: str, round_id: str, rows: int) -> dict[str, tuple[StateDict, int]]:
    updates = {name: (state_dict(seed, rows), count) for seed, (name, count) in enumerate(COUNTS.items())}
    for name, (weights, count) in updates.items():
        Client(name, model=model, deployment=deployed).push(weights, count, round_id=round_id)
    return updates


def _file_of(aws: AwsClients, deployed: Deployment, report: dict[str, Any]) -> bytes:
    return aws.s3.get_object(Bucket=deployed.bucket, Key=report["global_model"]["key"])["Body"].read()


@pytest.mark.parametrize(("model", "rows"), [("large", LARGE), ("small", SMALL)])
def test_the_global_model_is_bit_identical_to_the_reference_for_every_shard_count(
    deployed: Deployment, aws: AwsClients, model: str, rows: int
) -> None:
    digests = {}
    for shards in SHARD_COUNTS:
        round_id = f"{model}-{shards}"
        updates = _push(deployed, model, round_id, rows)
        report = start_round(aws, deployed, RoundRequest(model, round_id, shards, min_clients=4)).document
        stored = _file_of(aws, deployed, dict(report))
        assert stored == reference_average(updates)
        digests[shards] = hashlib.sha256(stored).hexdigest()
        assert report["shards"] == shards
        assert {r["shard"] for r in report["shard_results"]} <= set(range(shards))
        assert all(r["worker"].startswith(f"{deployed.lane(shards).function_name}/") for r in report["shard_results"])
    assert len(set(digests.values())) == 1
    assert aws.s3.list_multipart_uploads(Bucket=deployed.bucket).get("Uploads", []) == []


def test_a_worker_without_lambda_gives_the_same_bytes(
    deployed: Deployment, aws: AwsClients, functions: Functions
) -> None:
    lane = deployed.lane(4)
    with functions.paused(lane):
        updates = _push(deployed, "worked", "worked-4", LARGE)
        done: list[int] = []
        thread = threading.Thread(
            target=lambda: done.append(poll.work(aws, deployed, [lane], idle_exit_s=4)), daemon=True
        )
        thread.start()
        report = start_round(aws, deployed, RoundRequest("worked", "worked-4", 4, min_clients=4)).document
        thread.join(30)
        assert done == [4], "the worker did all four shards, no function did any"
        assert _file_of(aws, deployed, dict(report)) == reference_average(updates)


def test_two_rounds_at_once_on_one_lane_are_both_published_and_right(
    deployed: Deployment, aws: AwsClients, terminal: Terminal
) -> None:
    updates = {name: _push(deployed, name, f"{name}-1", LARGE + 100 * i) for i, name in enumerate(("twin-a", "twin-b"))}
    coordinators = {
        name: terminal.start(
            "start-round", "--model", name, "--round", f"{name}-1", "--shards", "4", "--output", "json"
        )
        for name in updates
    }
    for name, coordinator in coordinators.items():
        report = terminal.finish(coordinator)
        assert report["status"] == "published"
        assert _file_of(aws, deployed, report) == reference_average(updates[name])


def test_a_round_whose_orchestrator_was_killed_goes_on_where_it_stopped(
    deployed: Deployment, aws: AwsClients, functions: Functions, terminal: Terminal
) -> None:
    updates = _push(deployed, "killed", "killed-4", LARGE)
    with functions.paused(deployed.lane(4)):
        coordinator = terminal.start("start-round", "--model", "killed", "--round", "killed-4", "--shards", "4")
        wait_until(lambda: terminal.run("status", "--round", "killed-4")["state"] == "averaging", "jobs are queued")
        os.kill(coordinator.pid, signal.SIGKILL)
        coordinator.communicate()
    report = terminal.run("resume", "--round", "killed-4")
    assert report["status"] == "published"
    assert _file_of(aws, deployed, report) == reference_average(updates)
    assert aws.s3.list_multipart_uploads(Bucket=deployed.bucket).get("Uploads", []) == []


def test_a_job_that_fails_goes_to_the_dead_letter_queue_and_back(
    deployed: Deployment, aws: AwsClients, functions: Functions, terminal: Terminal
) -> None:
    lane = deployed.lane(1)
    aws.sqs.set_queue_attributes(QueueUrl=lane.queue_url, Attributes={"VisibilityTimeout": "1"})
    updates = _push(deployed, "letters", "letters-1", SMALL)
    with functions.misconfigured(lane, FL_BUCKET=f"{deployed.bucket}-of-yesterday"):
        message = terminal.run(
            "start-round", "--model", "letters", "--round", "letters-1", "--shards", "1", expect=5
        )["error"]["message"]  # fmt: skip
    assert f"shard 0 of 1 failed {lane.max_receive_count} times" in message
    assert lane.dead_letter_queue_url in message
    assert "NoSuchBucket" in message or "AccessDenied" in message, "the cause is named"
    wait_until(lambda: _waiting(aws, lane.dead_letter_queue_url) == 1, "the job is in the dead-letter queue")
    report = terminal.run("resume", "--round", "letters-1", "--redrive")
    assert report["status"] == "published"
    assert _file_of(aws, deployed, report) == reference_average(updates)
    wait_until(lambda: _waiting(aws, lane.dead_letter_queue_url) == 0, "the dead-letter queue is empty")


def _waiting(aws: AwsClients, queue_url: str) -> int:
    names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = aws.sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


def test_a_round_from_the_command_line_waits_for_its_quorum_and_publishes(terminal: Terminal, tmp_path: Path) -> None:
    updates = {name: (state_dict(seed), count) for seed, (name, count) in enumerate(COUNTS.items())}
    files = {}
    for name, (weights, _) in updates.items():
        files[name] = tmp_path / f"{name}.{'pt' if name == 'bravo' else 'safetensors'}"
        if name == "bravo":
            torch.save(weights, files[name])
        else:
            save_file(weights, files[name])

    def submit(name: str) -> Any:
        return terminal.run(
            "submit", str(files[name]), "--round", "cli-1", "--client", name, "--examples", str(COUNTS[name])
        )

    assert submit("alpha")["created"]
    coordinator = terminal.start(
        "start-round", "--model", "cli", "--round", "cli-1", "--shards", "auto", "--min-clients", "4",
        "--deadline", "90s", "--output", "json",
    )  # fmt: skip
    for name in ("bravo", "charlie", "delta"):
        assert submit(name)["num_examples"] == COUNTS[name]
    report = terminal.finish(coordinator)
    assert report["status"] == "published"
    assert [p["client"] for p in report["participants"]] == sorted(COUNTS)

    fetched = terminal.run("fetch", "--model", "cli", "--to", "global.safetensors")
    expected = reference_average(updates)
    assert (tmp_path / "global.safetensors").read_bytes() == expected
    assert fetched["sha256"] == hashlib.sha256(expected).hexdigest()
    loaded = load_file(tmp_path / "global.safetensors")
    assert loaded["bn.num_batches_tracked"].dtype == torch.int64
    assert terminal.run("status", "--round", "cli-1")["state"] == "published"
    verified = terminal.run("verify", "--round", "cli-1")
    assert verified["verified"]
    assert verified["data_sections"] == len(COUNTS)
    assert verified["global_model_sha256"] == fetched["sha256"]
    assert [r["round"] for r in terminal.run("rounds", "--model", "cli")] == ["cli-1"]

    again = terminal.run("start-round", "--model", "cli", "--round", "cli-1", expect=6)
    assert "already published" in again["error"]["message"]


def test_nan_in_an_update_fails_the_round_and_names_client_and_tensor(
    deployed: Deployment, aws: AwsClients, terminal: Terminal
) -> None:
    for name in ("good", "poisoned"):
        weights = state_dict(1, LARGE)
        if name == "poisoned":
            weights["body.bias"][3] = float("nan")
        Client(name, model="nan", deployment=deployed).push(weights, 10, round_id="nan-1")
    answer = terminal.run("start-round", "--model", "nan", "--round", "nan-1", "--shards", "4", expect=5)
    message = answer["error"]["message"]
    assert "poisoned" in message
    assert "body.bias" in message
    assert "NaN" in message
    assert "Contents" not in aws.s3.list_objects_v2(Bucket=deployed.bucket, Prefix="models/nan/")
    assert aws.s3.list_multipart_uploads(Bucket=deployed.bucket).get("Uploads", []) == []
    assert terminal.run("status", "--round", "nan-1")["state"] == "failed"


def test_no_lane_for_a_shard_count_says_which_exist(terminal: Terminal) -> None:
    answer = terminal.run("start-round", "--model", "m", "--round", "no-lane", "--shards", "6", expect=3)
    assert "No lane for 6 shards; deployed: 1, 4, 8." in answer["error"]["message"]


def test_terraform_sizes_the_lanes_by_the_planners_rule(deployed: Deployment) -> None:
    assert list(deployed.lanes) == SHARD_COUNTS
    for shards, lane in deployed.lanes.items():
        size = size_lane(MODEL_BYTES, CLIENTS, shards)
        assert (lane.memory_mb, lane.timeout_s) == (size.memory_mb, size.timeout_s)
        assert lane.ephemeral_storage_mb == size.ephemeral_storage_mb


def test_wire_dtype_halves_the_update_and_loses_at_most_half_a_unit_in_the_last_place(
    deployed: Deployment, aws: AwsClients
) -> None:
    counts = {"full": 5, "narrow": 11}
    for seed, name in enumerate(counts):
        result = Client(name, model="wire", deployment=deployed).push(
            state_dict(seed, LARGE), counts[name], round_id="wire-1", wire="bfloat16" if name == "narrow" else None
        )
        if name == "narrow":
            assert result.nbytes < 0.51 * LARGE * 1000 * ITEMSIZE["F32"]
    report = start_round(aws, deployed, RoundRequest("wire", "wire-1", 4, min_clients=2)).document
    assert report["wire_loss"] == [
        {
            "stored": "BF16",
            "clients": 1,
            "share_of_weight": 11 / 16,
            "relative_error_bound": 2**-8,
            "absolute_error_bound": 2**-134,
        }
    ]
    average = Client("full", model="wire", deployment=deployed).pull()["body.weight"].double()
    exact = (5 * state_dict(0, LARGE)["body.weight"].double() + 11 * state_dict(1, LARGE)["body.weight"].double()) / 16
    # bfloat16 has 8 significant bits: rounding to nearest errs by at most 2**-9 of the value's binade, 2**-8 relative.
    bound = 11 / 16 * state_dict(1, LARGE)["body.weight"].double().abs() * 2**-8 + 1e-7
    error = (average - exact).abs()
    assert bool((error <= bound).all())
    assert float(error.max()) > 1e-5, "the narrow update was not rounded at all"
