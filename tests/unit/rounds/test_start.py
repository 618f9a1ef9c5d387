"""Whole rounds: from updates to a published model, through every interruption, or not at all."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambdas.protocol.errors import InvalidName
from lambdas.protocol.keys import latest_key, report_key, round_key, update_key
from lambdas.protocol.latest_model import LatestModel
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import BadInput, NotDeployed, QuorumMissed, RoundConflict, RoundFailed
from orchestrator.progress import Narration
from orchestrator.rounds import coordinator, intake, queues, quorum, sharded, wait
from orchestrator.rounds import publish as publishing
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import RoundRecord, RoundRequest, open_round
from orchestrator.rounds.start import resume_round, start_round
from orchestrator.rounds.status import list_rounds, round_status
from tests.support.rounds import (
    LARGE,
    StateDict,
    expected_file,
    manifest_of,
    objects,
    put,
    put_bytes,
    queued,
    read,
    read_global,
    update_bytes,
    uploads,
    weights,
    work_off,
    working,
)

SMALL = (3, 5)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_WAIT_S", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(quorum, "_POLL_S", (0.1, 0.2))


def updates(shape: tuple[int, int] = SMALL) -> dict[str, tuple[StateDict, int]]:
    return {"c": (weights(3, shape), 2), "a": (weights(1, shape), 5), "b": (weights(2, shape), 1)}


def submit_all(aws: AwsClients, deployment: Deployment, shape: tuple[int, int] = SMALL, round_id: str = "r-1") -> bytes:
    """Three clients submit; returns the global model that their round has to publish."""
    for client, (values, examples) in updates(shape).items():
        put(aws, deployment, client, values, examples, round_id)
    return expected_file(updates(shape))


def request(shards: int | None = 2, round_id: str = "r-1", **fields: Any) -> RoundRequest:
    return RoundRequest(**{"model": "digits", "round_id": round_id, "shards": shards, "timeout_s": 30.0, **fields})


def run(
    aws: AwsClients, deployment: Deployment, shards: int | None = 2, *, replace: bool = False, **fields: Any
) -> Report:
    return start_round(aws, deployment, request(shards, **fields), replace_options=replace)


def stored_report(aws: AwsClients, deployment: Deployment, round_id: str = "r-1") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(read(aws, deployment, report_key(round_id)))
    return document


# --- the whole flow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shards", "shape"), [(1, SMALL), (2, SMALL), (8, SMALL), (1, LARGE), (2, LARGE), (4, LARGE)])
def test_a_round_publishes_the_reference_average_for_any_number_of_shards(
    aws: AwsClients, lanes_without_functions: Deployment, shards: int, shape: tuple[int, int]
) -> None:
    expected = submit_all(aws, lanes_without_functions, shape)
    with working(aws, lanes_without_functions, shards):
        report = run(aws, lanes_without_functions, shards)
    body = read_global(aws, lanes_without_functions)
    assert body == expected
    assert uploads(aws, lanes_without_functions) == 0
    assert manifest_of(aws, lanes_without_functions).output.kind == (
        "multipart" if shards == 1 or (shape, shards) == (LARGE, 2) else "objects"
    )
    assert report.document == stored_report(aws, lanes_without_functions)
    assert report.document["status"] == "published"
    assert report.document["total_examples"] == 8
    assert [p["client"] for p in report.document["participants"]] == ["a", "b", "c"]
    assert "published" in report.to_text()
    latest = LatestModel.from_bytes(read(aws, lanes_without_functions, latest_key("digits")))
    assert (latest.round_id, latest.size) == ("r-1", len(body))


def test_a_global_model_opens_with_the_safetensors_library(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    submit_all(aws, lanes_without_functions)
    with working(aws, lanes_without_functions, 4):
        run(aws, lanes_without_functions, 4)
    loaded = safetensors.numpy.load(read_global(aws, lanes_without_functions))
    first = weights(1)
    assert {name: (v.shape, v.dtype) for name, v in loaded.items()} == {n: (v.shape, v.dtype) for n, v in first.items()}
    mean = (5 * first["layer.weight"].astype(float) + weights(2)["layer.weight"] + 2.0 * weights(3)["layer.weight"]) / 8
    assert np.array_equal(loaded["layer.weight"], mean.astype(np.float32))
    assert int(loaded["bn.num_batches_tracked"]) == round((5 * 11 + 12 + 2 * 13) / 8)


def test_the_planner_chooses_the_lane_where_no_shard_count_is_given(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    expected = submit_all(aws, lanes_without_functions)
    with working(aws, lanes_without_functions, 1, 2, 4, 8):
        report = run(aws, lanes_without_functions, None)
    assert report.document["shards"] in lanes_without_functions.lanes
    assert read_global(aws, lanes_without_functions) == expected


def test_updates_stored_in_several_dtypes_are_averaged_together(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    from orchestrator.client.sources import from_state_dict
    from orchestrator.client.submit import submit

    values = {"w": np.array([1.0, 2.5, -3.0, 0.25], np.float32)}  # exact in every wire dtype
    for client, wire in (("a", None), ("b", "BF16"), ("c", "F16")):
        submit(aws.bucket(lanes_without_functions.bucket), "r-1", client, from_state_dict(values), 1, wire=wire)
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions)
    assert np.array_equal(safetensors.numpy.load(read_global(aws, lanes_without_functions))["w"], values["w"])
    assert [p["stored"] for p in report.document["participants"]] == [["F32"], ["BF16"], ["F16"]]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 10**9), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 2**32),
    st.integers(0, 30),
)
def test_rounds_of_any_weights_and_sizes_publish_the_reference(
    aws: AwsClients, lanes_without_functions: Deployment, counts: list[int], shards: int, seed: int, size: int
) -> None:
    round_id = f"r-{seed}-{len(counts)}-{shards}-{size}-{time.monotonic_ns()}"
    model = f"m-{round_id}"
    submitted = {f"c{i}": (weights(seed % 997 + i, (size, 3)), count) for i, count in enumerate(counts)}
    for client, (values, count) in submitted.items():
        put(aws, lanes_without_functions, client, values, count, round_id)
    with working(aws, lanes_without_functions, shards):
        run(aws, lanes_without_functions, shards, round_id=round_id, model=model)
    assert read_global(aws, lanes_without_functions, round_id, model) == expected_file(submitted)


# --- requests that make no sense -----------------------------------------------------------------------------------


def test_a_quorum_below_one_and_an_expectation_below_the_quorum_are_refused() -> None:
    with pytest.raises(BadInput, match="A quorum of 0 clients; expected 1 or more"):
        request(min_clients=0)
    with pytest.raises(BadInput, match="Expecting 2 clients cannot reach the quorum of 3"):
        request(min_clients=3, expect=2)
    with pytest.raises(InvalidName, match="is not a valid round"):
        request(round_id="a/b")
    with pytest.raises(InvalidName, match="is not a valid model"):
        request(model="..")


def test_a_shard_count_without_a_lane_is_refused_before_the_round_is_opened(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    submit_all(aws, lanes_without_functions)
    with pytest.raises(
        NotDeployed, match=r"No lane for 6 shards; deployed: 1, 2, 4, 8. Add 6 to shard_counts in environments/local"
    ):
        run(aws, lanes_without_functions, 6)
    assert objects(aws, lanes_without_functions, round_key("r-1")) == []
    assert queued(aws, lanes_without_functions) == 0


@pytest.mark.parametrize(
    "waiting",
    [{"deadline_s": 7 * 86400.0}, {"deadline_s": 2 * 86400.0, "on_deadline": "extend", "extend_s": 2 * 86400.0}],
    ids=["deadline", "extensions"],
)
def test_a_deadline_beyond_the_retention_of_rounds_is_refused_before_the_round_is_opened(
    aws: AwsClients, lanes_without_functions: Deployment, waiting: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=r"waits up to [78]\.0 days.*deletes them after 7 days.*round_retention_days"):
        start_round(aws, lanes_without_functions, RoundRequest("digits", "r-1", 4, **waiting))
    assert objects(aws, lanes_without_functions, round_key("r-1")) == []


def test_a_round_without_updates_misses_its_quorum_and_stays_open(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    with pytest.raises(QuorumMissed, match=r"Round r-1 has no updates and no --deadline.*It stays open: let clients"):
        run(aws, lanes_without_functions)
    assert round_status(aws, aws.bucket(lanes_without_functions.bucket), "r-1")["state"] == "open"
    assert queued(aws, lanes_without_functions) == 0


def test_too_few_updates_miss_the_quorum_and_say_how_many(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    submit_all(aws, lanes_without_functions)
    with pytest.raises(QuorumMissed, match=r"has 3 of the 4 updates of its quorum after 0 s|has 3 of the 4 updates"):
        run(aws, lanes_without_functions, min_clients=4, deadline_s=0.3)
    assert queued(aws, lanes_without_functions) == 0
    # The same round can be closed with a smaller quorum, if that is said.
    with working(aws, lanes_without_functions, 2):
        assert run(aws, lanes_without_functions, min_clients=3, replace=True).document["status"] == "published"


def test_a_round_waits_for_the_updates_it_expects(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    later = threading.Timer(0.5, put, (aws, lanes_without_functions, "b", weights(2)))
    later.start()
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions, min_clients=1, expect=2, deadline_s=20.0)
    assert [p["client"] for p in report.document["participants"]] == ["a", "b"]
    assert report.document["seconds"]["total"] < 15


def test_at_the_deadline_the_round_closes_with_its_quorum(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions, min_clients=1, expect=5, deadline_s=0.3)
    assert [p["client"] for p in report.document["participants"]] == ["a"]


def test_a_round_of_another_model_is_a_conflict(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    submit_all(aws, lanes_without_functions)
    open_round(aws.bucket(lanes_without_functions.bucket), request(model="vgg"))
    with pytest.raises(RoundConflict, match=r"Round r-1 is one of model vgg, not of digits. Choose another round id"):
        run(aws, lanes_without_functions)
    assert queued(aws, lanes_without_functions) == 0


def test_opening_a_round_again_keeps_its_record(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    first = open_round(aws.bucket(lanes_without_functions.bucket), request())
    assert open_round(aws.bucket(lanes_without_functions.bucket), request()) == first
    assert RoundRecord.from_bytes(read(aws, lanes_without_functions, round_key("r-1"))) == first


def test_a_published_round_is_not_run_again(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    submit_all(aws, lanes_without_functions)
    with working(aws, lanes_without_functions, 2):
        run(aws, lanes_without_functions)
    before = read_global(aws, lanes_without_functions)
    with pytest.raises(
        RoundConflict, match=r"already published. Fetch it with `orchestrator fetch --model digits --round r-1`"
    ):
        run(aws, lanes_without_functions)
    assert read_global(aws, lanes_without_functions) == before
    assert queued(aws, lanes_without_functions) == 0


def test_a_round_id_that_an_expired_round_of_the_model_has_used_is_a_conflict(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    submit_all(aws, lanes_without_functions)
    aws.s3.put_object(
        Bucket=lanes_without_functions.bucket, Key="models/digits/r-1/global.safetensors", Body=b"of last year"
    )
    with pytest.raises(RoundConflict, match=r"has a global model of an earlier round r-1. Choose another round id"):
        run(aws, lanes_without_functions)
    assert read_global(aws, lanes_without_functions) == b"of last year"


def test_a_bucket_that_does_not_exist_is_not_taken_for_an_empty_one(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    from dataclasses import replace

    from botocore.exceptions import ClientError

    from orchestrator.aws.clients import explain

    with pytest.raises(ClientError) as caught:
        run(aws, replace(lanes_without_functions, bucket="no-such-bucket"))
    explained = explain(caught.value)
    assert isinstance(explained, NotDeployed)
    assert "does not exist. Deploy the environment" in str(explained)


# --- bad updates ---------------------------------------------------------------------------------------------------


def test_an_update_that_cannot_be_averaged_stops_the_round_before_any_job_and_can_be_replaced(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    submit_all(aws, lanes_without_functions)
    put_bytes(aws, lanes_without_functions, "bad", update_bytes(weights(4, (5, 3))))
    with pytest.raises(RoundFailed, match=r"client bad: tensor 'layer.weight' has shape"):
        run(aws, lanes_without_functions)
    assert queued(aws, lanes_without_functions) == 0
    assert uploads(aws, lanes_without_functions) == 0
    assert objects(aws, lanes_without_functions, "models/") == []
    assert round_status(aws, aws.bucket(lanes_without_functions.bucket), "r-1")["state"] == "open"
    # The next step that the error names works.
    aws.s3.delete_object(Bucket=lanes_without_functions.bucket, Key=update_key("r-1", "bad"))
    put(aws, lanes_without_functions, "bad", weights(4))
    with working(aws, lanes_without_functions, 2):
        assert len(run(aws, lanes_without_functions).document["participants"]) == 4


@pytest.mark.parametrize(
    ("value", "spelled", "shape"),
    [(np.nan, "NaN", SMALL), (np.inf, "Inf", SMALL), (-np.inf, "-Inf", SMALL), (np.nan, "NaN", LARGE)],
)
def test_a_value_that_is_no_number_fails_the_round_by_client_and_tensor_and_publishes_nothing(
    aws: AwsClients, lanes_without_functions: Deployment, value: float, spelled: str, shape: tuple[int, int]
) -> None:
    submit_all(aws, lanes_without_functions, shape)
    bad = weights(9, shape)
    bad["scale"] = np.array(value, np.float32)
    put(aws, lanes_without_functions, "hospital-9", bad, 10)
    message = f"tensor 'scale': client hospital-9 has {spelled}"
    with working(aws, lanes_without_functions, 2), pytest.raises(RoundFailed, match=message) as caught:
        run(aws, lanes_without_functions)
    assert "Nothing was published" in str(caught.value)
    report = stored_report(aws, lanes_without_functions)
    assert report["status"] == "failed"
    assert report["client"] == "hospital-9"
    assert message in report["error"]
    assert message in Report(report).to_text()
    assert objects(aws, lanes_without_functions, "models/") == []
    assert uploads(aws, lanes_without_functions) == 0
    assert round_status(aws, aws.bucket(lanes_without_functions.bucket), "r-1")["state"] == "failed"
    with pytest.raises(RoundFailed, match=f"{message}.*The round has ended; start one with another id"):
        run(aws, lanes_without_functions)


def test_an_update_that_is_replaced_after_pinning_fails_the_round_by_its_client(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_all(aws, lanes_without_functions)
    real = sharded.queue_jobs

    def replace_first(*args: Any, **kwargs: Any) -> None:
        put_bytes(aws, lanes_without_functions, "b", update_bytes(weights(77), 1))
        real(*args, **kwargs)

    monkeypatch.setattr(sharded, "queue_jobs", replace_first)
    with (
        working(aws, lanes_without_functions, 2),
        pytest.raises(RoundFailed, match=r"client b: its update .* was replaced"),
    ):
        run(aws, lanes_without_functions)
    assert stored_report(aws, lanes_without_functions)["client"] == "b"
    assert objects(aws, lanes_without_functions, "models/") == []


# --- interruptions -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The orchestrator's process ends here."""


def killed_at(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, *, after: bool = False) -> None:
    real = getattr(where, name)

    def kill(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(where, name, real)
        if after:
            real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(where, name, kill)


def half_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sharded.queue_jobs

    def half(aws: AwsClients, url: str, manifest: Any, shards: Any, *, attempt: int) -> None:
        monkeypatch.setattr(sharded, "queue_jobs", real)
        real(aws, url, manifest, list(shards)[::2], attempt=attempt)
        raise Killed

    monkeypatch.setattr(sharded, "queue_jobs", half)


INTERRUPTIONS = {
    "after pinning, before queueing": lambda m: killed_at(m, sharded, "queue_jobs"),
    "half queued": half_queued,
    "all queued, none averaged": lambda m: killed_at(m, sharded, "wait_for_step"),
    "all averaged, before publishing": lambda m: killed_at(m, coordinator, "publish"),
    "published, before the latest pointer": lambda m: killed_at(m, publishing, "_move_latest"),
    "published, before the report": lambda m: killed_at(m, coordinator, "publish", after=True),
}


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("interruption", list(INTERRUPTIONS))
def test_a_round_that_was_interrupted_finishes_with_the_same_bytes_and_leaves_nothing_behind(
    aws: AwsClients,
    lanes_without_functions: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    interruption: str,
    shape: tuple[int, int],
) -> None:
    expected = submit_all(aws, lanes_without_functions, shape)
    INTERRUPTIONS[interruption](monkeypatch)
    averaged = "averaged," in interruption or "published" in interruption
    with working(aws, lanes_without_functions, *([2] if averaged and "none" not in interruption else [])):
        with pytest.raises(Killed):
            run(aws, lanes_without_functions)
        first = manifest_of(aws, lanes_without_functions)
    if "published" in interruption:  # nothing is averaged again
        monkeypatch.setattr(sharded, "queue_jobs", None)
    # A late update does not get in, and the round stays the one that was opened.
    put_bytes(aws, lanes_without_functions, "late", update_bytes(weights(50, shape)))
    with pytest.raises(RoundConflict, match="opened with other options: shards is 2, not 4"):
        run(aws, lanes_without_functions, 4)
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions)
    assert manifest_of(aws, lanes_without_functions) == first
    assert read_global(aws, lanes_without_functions) == expected
    assert report.document["status"] == "published"
    assert report.document["shards"] == 2
    assert stored_report(aws, lanes_without_functions) == report.document
    assert uploads(aws, lanes_without_functions) == 0
    assert objects(aws, lanes_without_functions, "rounds/r-1/shards/") == []
    assert LatestModel.from_bytes(read(aws, lanes_without_functions, latest_key("digits"))).round_id == "r-1"


def test_a_round_that_was_interrupted_before_pinning_starts_over(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = submit_all(aws, lanes_without_functions)
    killed_at(monkeypatch, intake, "pin_updates")
    with pytest.raises(Killed):
        run(aws, lanes_without_functions)
    with working(aws, lanes_without_functions, 2):
        run(aws, lanes_without_functions)
    assert read_global(aws, lanes_without_functions) == expected


def test_shards_that_are_stored_are_not_averaged_again(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_all(aws, lanes_without_functions)
    killed_at(monkeypatch, sharded, "wait_for_step")
    with pytest.raises(Killed):
        run(aws, lanes_without_functions, 8)
    assert work_off(aws, lanes_without_functions, 8, jobs=5) == 5
    aws.sqs.purge_queue(QueueUrl=lanes_without_functions.lane(8).queue_url)
    killed_at(monkeypatch, sharded, "wait_for_step")
    with pytest.raises(Killed):
        run(aws, lanes_without_functions, 8)
    assert queued(aws, lanes_without_functions) == 3


def test_the_jobs_that_died_are_named_and_queued_again_when_asked_for(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    expected = submit_all(aws, lanes_without_functions)
    lane = lanes_without_functions.lane(2)

    def die() -> None:
        left = 2
        while left:
            for message in aws.sqs.receive_message(QueueUrl=lane.queue_url, WaitTimeSeconds=1).get("Messages", []):
                aws.sqs.send_message(QueueUrl=lane.dead_letter_queue_url, MessageBody=message["Body"])
                aws.sqs.delete_message(QueueUrl=lane.queue_url, ReceiptHandle=message["ReceiptHandle"])
                left -= 1

    threading.Thread(target=die, daemon=True).start()
    gave_up = r"shard 0 of 2 failed 3 times.*dead-letter queue.*`orchestrator resume --round r-1 --redrive` continues"
    with pytest.raises(RoundFailed, match=gave_up):
        run(aws, lanes_without_functions)
    bucket = lanes_without_functions.bucket
    status = round_status(aws, aws.bucket(bucket), "r-1")
    assert (status["state"], status["shards_done"]) == ("averaging", 0)
    assert "shard 0 of 2 failed 3 times" in status["stopped"]
    status = round_status(aws, aws.bucket(bucket), "r-1", lanes_without_functions)
    assert (status["gave_up"], status["tries"]) == ([0, 1], 3)
    assert status["log_group"] == f"/aws/lambda/{lane.function_name}"
    # Nothing is tried again unasked: the cause may still be there.
    with pytest.raises(RoundFailed, match=gave_up):
        resume_round(aws, lanes_without_functions, "r-1")
    assert queued(aws, lanes_without_functions) == 0
    with working(aws, lanes_without_functions, 2):
        resume_round(aws, lanes_without_functions, "r-1", redrive=True, timeout_s=30)
    assert read_global(aws, lanes_without_functions) == expected
    assert "Messages" not in aws.sqs.receive_message(QueueUrl=lane.dead_letter_queue_url)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_two_orchestrators_of_one_round_end_in_one_publication(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    expected = submit_all(aws, lanes_without_functions, shape)
    with working(aws, lanes_without_functions, 2, 4), concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, aws, lanes_without_functions, shards) for shards in (2, 2)]
        reports = [future.result().document for future in futures]
    assert read_global(aws, lanes_without_functions) == expected
    assert uploads(aws, lanes_without_functions) == 0
    assert reports[0]["global_model"] == reports[1]["global_model"]
    assert reports[0]["manifest_sha256"] == reports[1]["manifest_sha256"]


def test_two_rounds_at_once_share_the_result_queue(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    for round_id in ("r-1", "r-2"):
        submit_all(aws, lanes_without_functions, round_id=round_id)
    with working(aws, lanes_without_functions, 4, 8), concurrent.futures.ThreadPoolExecutor(2) as pool:
        one = pool.submit(run, aws, lanes_without_functions, 4, round_id="r-1")
        two = pool.submit(run, aws, lanes_without_functions, 8, round_id="r-2")
        assert [f.result().document["status"] for f in (one, two)] == ["published", "published"]
    assert read_global(aws, lanes_without_functions, "r-1") == read_global(aws, lanes_without_functions, "r-2")


# --- looking at rounds ---------------------------------------------------------------------------------------------


def test_the_status_follows_a_round_from_its_first_update_to_its_publication(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = lanes_without_functions.bucket
    with pytest.raises(BadInput, match=r"There is no round r-1. `orchestrator rounds` lists the rounds"):
        round_status(aws, aws.bucket(bucket), "r-1")
    submit_all(aws, lanes_without_functions)
    assert round_status(aws, aws.bucket(bucket), "r-1") == {
        "round": "r-1",
        "model": None,
        "state": "not opened",
        "updates": 3,
    }
    open_round(aws.bucket(bucket), request())
    assert round_status(aws, aws.bucket(bucket), "r-1") == {
        "round": "r-1",
        "model": "digits",
        "state": "open",
        "updates": 3,
    }
    killed_at(monkeypatch, sharded, "wait_for_step")
    with pytest.raises(Killed):
        run(aws, lanes_without_functions)
    assert work_off(aws, lanes_without_functions, 2, jobs=1) == 1
    status = round_status(aws, aws.bucket(bucket), "r-1")
    assert (status["state"], status["shards_done"], status["shards"]) == ("averaging", 1, 2)
    with working(aws, lanes_without_functions, 2):
        run(aws, lanes_without_functions)
    status = round_status(aws, aws.bucket(bucket), "r-1")
    assert (status["state"], status["key"]) == ("published", "models/digits/r-1/global.safetensors")


def test_a_round_of_another_release_is_listed_as_unreadable_and_hides_no_other(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    bucket = aws.bucket(lanes_without_functions.bucket)
    open_round(bucket, RoundRequest("digits", "r-2"))
    for name, record in (("r-1", b'{"schema":1}'), ("bad.name", b"{}")):
        aws.s3.put_object(Bucket=bucket.name, Key=f"rounds/{name}/round.json", Body=record)
    found = {row["round"]: row for row in list_rounds(aws, bucket)}
    assert {name: row["state"] for name, row in found.items()} == {
        "bad.name": "unreadable", "r-1": "unreadable", "r-2": "open",
    }  # fmt: skip
    assert "r-1" in found["r-1"]["error"]
    assert "schema is 1, this version reads 2" in found["r-1"]["error"]
    assert [row["round"] for row in list_rounds(aws, bucket, "digits")] == ["r-2"]


def test_rounds_are_listed_by_model(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    bucket = lanes_without_functions.bucket
    assert list_rounds(aws, aws.bucket(bucket)) == []
    for round_id, model in (("r-2", "vgg"), ("r-1", "digits"), ("r-3", "digits")):
        open_round(aws.bucket(bucket), request(round_id=round_id, model=model))
    put(aws, lanes_without_functions, "a", weights(1), round_id="r-4")
    assert [r["round"] for r in list_rounds(aws, aws.bucket(bucket))] == ["r-1", "r-2", "r-3", "r-4"]
    assert [r["round"] for r in list_rounds(aws, aws.bucket(bucket), "digits")] == ["r-1", "r-3"]


def test_a_round_narrates_what_happens(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    class Heard(Narration):
        def __init__(self) -> None:
            self.sentences: list[str] = []

        def say(self, sentence: str) -> None:
            self.sentences.append(sentence)

    heard = Heard()
    submit_all(aws, lanes_without_functions)
    with working(aws, lanes_without_functions, 2):
        start_round(aws, lanes_without_functions, request(), heard)
    assert heard.sentences[0] == "Pinned 3 updates with 8 examples; 2 shards."
    assert heard.sentences[1].startswith("Queued 2 shards of 0.0 MB for test-")
