"""One coordinator per round: taking, renewing, losing and giving back its lease; aborting a round."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.keys import coordinator_key, report_key
from lambdas.protocol.lease import CoordinatorRecord, Process
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.s3 import read_object, swap_object
from orchestrator.errors import (
    BadInput,
    NotDeployed,
    OrchestratorError,
    PlanningError,
    QuorumMissed,
    RoundAborted,
    RoundConflict,
    RoundFailed,
)
from orchestrator.progress import Narration
from orchestrator.rounds import coordinator as coordinating
from orchestrator.rounds import lease, queues, wait
from orchestrator.rounds.abort import abort_round
from orchestrator.rounds.lease import Held, Lease, LeaseLost
from orchestrator.rounds.processes import is_gone, this_process
from orchestrator.rounds.quorum import RoundRequest
from orchestrator.rounds.start import open_round, resume_round, start_round
from orchestrator.rounds.status import round_status
from tests.support.rounds import (
    LARGE,
    expected_file,
    objects,
    put,
    read,
    read_global,
    uploads,
    weights,
    work_off,
    working,
)

ELSEWHERE = Process("far-away", 4711, "another machine", "", 0.0)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_WAIT_S", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(lease, "WATCH_EVERY_S", 0.05)


@pytest.fixture
def bucket(lanes_without_functions: Deployment) -> str:
    return lanes_without_functions.bucket


class Heard(Narration):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def taken(aws: AwsClients, bucket: str) -> Lease:
    found = lease.take(aws.bucket(bucket), "r-1")
    assert isinstance(found, Lease)
    return found


def coordinated_elsewhere(aws: AwsClients, bucket: str, lease_s: float = 30.0, **fields: Any) -> str:
    """A lease that a process on another machine holds."""
    record = CoordinatorRecord("r-1", "token", ELSEWHERE, lease_s, **fields)
    aws.s3.put_object(Bucket=bucket, Key=coordinator_key("r-1"), Body=record.to_bytes())
    return str(aws.s3.head_object(Bucket=bucket, Key=coordinator_key("r-1"))["ETag"])


def request(**fields: Any) -> RoundRequest:
    return RoundRequest(**{"model": "digits", "round_id": "r-1", "shards": 2, "timeout_s": 30.0, **fields})


# --- taking and losing ---------------------------------------------------------------------------------------------


def test_of_many_that_take_a_lease_at_once_one_gets_it(aws: AwsClients, bucket: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: lease.take(aws.bucket(bucket), "r-1"), range(8)))
    assert sum(isinstance(f, Lease) for f in found) == 1
    assert {f.record.process.pid for f in found} == {os.getpid()}


def test_a_lease_that_is_renewed_is_not_taken_however_wrong_its_holders_clock_is(
    aws: AwsClients, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.6)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the holder lives in 1970
    monkeypatch.setattr(lease, "is_gone", lambda process: False)
    holder = taken(aws, bucket)
    monkeypatch.undo()
    with holder.kept():
        held = lease.take(aws.bucket(bucket), "r-1")
        assert isinstance(held, Held)
        watch = lease.Watch(aws.bucket(bucket), held)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            assert not watch.has_run_out()
            time.sleep(0.05)
    assert holder.record.beat > 3


def test_a_lease_that_nobody_renews_runs_out_by_the_watchers_own_clock(aws: AwsClients, bucket: str) -> None:
    coordinated_elsewhere(aws, bucket, lease_s=0.5)
    held = lease.take(aws.bucket(bucket), "r-1")
    assert isinstance(held, Held), "what another machine's process holds is not free at first sight"
    watch = lease.Watch(aws.bucket(bucket), held)
    assert not watch.has_run_out()
    time.sleep(0.6)
    assert watch.has_run_out()
    successor = lease.take(aws.bucket(bucket), "r-1", instead_of=watch.held)
    assert isinstance(successor, Lease)
    assert [p.host for p in successor.coordinators] == ["far-away", this_process().host]


def test_a_lease_that_was_renewed_at_the_last_moment_is_not_taken(aws: AwsClients, bucket: str) -> None:
    coordinated_elsewhere(aws, bucket)
    held = lease.take(aws.bucket(bucket), "r-1")
    assert isinstance(held, Held)
    coordinated_elsewhere(aws, bucket, beat=1)
    assert isinstance(lease.take(aws.bucket(bucket), "r-1", instead_of=held), Held)


def test_the_lease_of_a_process_that_ended_on_this_machine_is_taken_at_once(aws: AwsClients, bucket: str) -> None:
    code = "from orchestrator.rounds.processes import this_process as p; import json, dataclasses; "
    code += "print(json.dumps(dataclasses.asdict(p())))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    process = Process(**json.loads(child.stdout))
    assert is_gone(process)
    assert not is_gone(this_process())
    assert not is_gone(replace(process, machine="another")), "its process ids mean something else"
    assert is_gone(replace(process, pid=os.getpid())), "the process id is used again, by a process started later"
    record = CoordinatorRecord("r-1", "token", process, 3600.0)
    aws.s3.put_object(Bucket=bucket, Key=coordinator_key("r-1"), Body=record.to_bytes())
    assert isinstance(lease.take(aws.bucket(bucket), "r-1"), Lease)


def test_a_coordinator_that_slept_through_its_lease_notices_that_another_one_coordinates(
    aws: AwsClients, bucket: str
) -> None:
    sleeper = taken(aws, bucket)
    held = lease.take(aws.bucket(bucket), "r-1")
    assert isinstance(held, Held)
    assert isinstance(lease.take(aws.bucket(bucket), "r-1", instead_of=held), Lease)
    sleeper.check()  # it has not looked yet
    with pytest.raises(LeaseLost, match=r"Round r-1 is coordinated by process \d+ on .* now"):
        sleeper.mark("publishing")
    with pytest.raises(LeaseLost):
        sleeper.check()


def test_a_renewal_whose_answer_was_lost_keeps_the_lease(aws: AwsClients, bucket: str) -> None:
    # boto3 repeats it, and S3 refuses the repetition: the ETag has changed, by the first one.
    etag = swap_object(aws.bucket(bucket), "some.json", b"1", None)
    aws.s3.put_object(Bucket=bucket, Key="some.json", Body=b"2")
    assert swap_object(aws.bucket(bucket), "some.json", b"2", etag) is not None
    assert swap_object(aws.bucket(bucket), "some.json", b"3", etag) is None
    assert read_object(aws.bucket(bucket), "some.json") is not None


def test_a_record_that_is_none_is_refused_by_name() -> None:
    record = CoordinatorRecord("r-1", "token", ELSEWHERE, 30.0, error={"kind": "K", "message": "m", "exit_status": 5})
    assert CoordinatorRecord.from_bytes(record.to_bytes()) == record
    for broken in (b"", b"{}", record.to_bytes().replace(b"running", b"dancing")):
        with pytest.raises(InvalidContract, match="Coordinator record"):
            CoordinatorRecord.from_bytes(broken)


# --- waiting for another coordinator -------------------------------------------------------------------------------


def test_a_second_orchestrator_waits_and_returns_the_very_report(
    aws: AwsClients, lanes_without_functions: Deployment, heard: Heard
) -> None:
    for client in ("a", "b"):
        put(aws, lanes_without_functions, client, weights(ord(client)))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(start_round, aws, lanes_without_functions, request())
        while not objects(aws, lanes_without_functions, coordinator_key("r-1")):
            time.sleep(0.02)
        second = pool.submit(start_round, aws, lanes_without_functions, request(), heard)
        while not heard.sentences:
            time.sleep(0.02)
        with working(aws, lanes_without_functions, 2):
            assert second.result().document == first.result().document
    assert heard.sentences[0].startswith(f"Round r-1 is coordinated by process {os.getpid()} on ")
    assert len(first.result().document["coordinators"]) == 1
    assert resume_round(aws, lanes_without_functions, "r-1").document == first.result().document


def test_a_second_orchestrator_takes_over_when_the_lease_runs_out(
    aws: AwsClients, lanes_without_functions: Deployment, heard: Heard
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    coordinated_elsewhere(aws, lanes_without_functions.bucket, lease_s=0.5)
    with working(aws, lanes_without_functions, 2):
        report = start_round(aws, lanes_without_functions, request(), heard)
    assert [d["host"] for d in report.document["coordinators"]] == ["far-away", this_process().host]
    assert "process 4711 on far-away" in heard.sentences[0]
    assert heard.sentences[1] == "Round r-1 is not coordinated by process 4711 on far-away any more; taking over."


@pytest.mark.parametrize("kind", [RoundFailed, NotDeployed, PlanningError, OrchestratorError])
def test_what_stops_the_coordinator_is_raised_by_those_who_wait(
    aws: AwsClients, lanes_without_functions: Deployment, heard: Heard, kind: type[OrchestratorError]
) -> None:
    """By the recorded kind, not by the exit status. InvalidContract, a kind of another module, is a general error."""
    bucket = lanes_without_functions.bucket
    put(aws, lanes_without_functions, "a", weights(1))
    open_round(aws.bucket(bucket), request())
    coordinated_elsewhere(aws, bucket)
    recorded = "InvalidContract" if kind is OrchestratorError else kind.__name__
    error = {"kind": recorded, "message": "shard 3 of 8 failed 5 times", "exit_status": 5}
    stop = threading.Timer(0.5, coordinated_elsewhere, (aws, bucket), {"state": "stopped", "error": error})
    stop.start()
    with pytest.raises(kind, match=r"^shard 3 of 8 failed 5 times$") as caught:
        resume_round(aws, lanes_without_functions, "r-1", narration=heard)
    assert type(caught.value) is kind
    assert round_status(aws, aws.bucket(bucket), "r-1")["stopped"] == "shard 3 of 8 failed 5 times"


def test_a_coordinator_that_missed_its_quorum_does_not_decide_for_one_that_asks_for_less(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    with pytest.raises(QuorumMissed):
        start_round(aws, lanes_without_functions, request(min_clients=2))
    with working(aws, lanes_without_functions, 2):
        report = start_round(aws, lanes_without_functions, request(), replace_options=True)
    assert report.document["status"] == "published"


# --- aborting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_an_aborted_round_stops_its_coordinator_drops_its_jobs_and_leaves_nothing_behind(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    bucket = lanes_without_functions.bucket
    for client in ("a", "b"):
        put(aws, lanes_without_functions, client, weights(ord(client), shape))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coordinator = pool.submit(start_round, aws, lanes_without_functions, request())
        while work_off(aws, lanes_without_functions, 2, jobs=1) == 0:
            time.sleep(0.05)
        report = abort_round(aws.bucket(bucket), "r-1")
        with pytest.raises(RoundAborted, match=r"Round r-1 was aborted by process \d+ on"):
            coordinator.result(timeout=20)
    assert report.document["status"] == "aborted"
    assert report.document["aborted_by"]["pid"] == os.getpid()
    assert "aborted" in report.to_text()
    assert work_off(aws, lanes_without_functions, 2) == 1, "the job that was left is dropped"
    assert uploads(aws, lanes_without_functions) == 0
    assert objects(aws, lanes_without_functions, "rounds/r-1/shards/") == []
    assert objects(aws, lanes_without_functions, "models/") == []
    assert round_status(aws, aws.bucket(bucket), "r-1")["state"] == "aborted"
    assert abort_round(aws.bucket(bucket), "r-1") == report
    for again in (
        lambda: start_round(aws, lanes_without_functions, request()),
        lambda: resume_round(aws, lanes_without_functions, "r-1"),
    ):
        with pytest.raises(RoundAborted, match="start one with another id"):
            again()


def test_an_open_round_can_be_aborted_before_anything_is_pinned(aws: AwsClients, bucket: str) -> None:
    open_round(aws.bucket(bucket), request())
    assert abort_round(aws.bucket(bucket), "r-1").document["participants"] == []
    assert round_status(aws, aws.bucket(bucket), "r-1")["state"] == "aborted"


def test_a_round_whose_coordinator_stopped_after_storing_the_model_is_not_aborted(
    aws: AwsClients, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_round(aws.bucket(bucket), RoundRequest("digits", "r-1"))
    aws.s3.put_object(Bucket=bucket, Key="models/digits/r-1/global.safetensors", Body=b"a model")
    stopped = CoordinatorRecord("r-1", "token", this_process(), 30.0, state="stopped")
    aws.s3.put_object(Bucket=bucket, Key=coordinator_key("r-1"), Body=stopped.to_bytes())
    with pytest.raises(RoundConflict, match="has stored its global model already"):
        abort_round(aws.bucket(bucket), "r-1")
    assert lease.read_coordinator(aws.bucket(bucket), "r-1").record == stopped  # type: ignore[union-attr]


def test_a_round_that_is_published_or_being_published_is_not_aborted(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = lanes_without_functions.bucket
    with pytest.raises(BadInput, match="There is no round r-1"):
        abort_round(aws.bucket(bucket), "r-1")
    put(aws, lanes_without_functions, "a", weights(1))
    publish = coordinating.publish

    def aborted_meanwhile(*arguments: Any) -> Any:
        with pytest.raises(RoundConflict, match=r"being published by process .* cannot be aborted any more"):
            abort_round(aws.bucket(bucket), "r-1")
        return publish(*arguments)

    monkeypatch.setattr(coordinating, "publish", aborted_meanwhile)
    with working(aws, lanes_without_functions, 2):
        report = start_round(aws, lanes_without_functions, request())
    with pytest.raises(RoundConflict, match="already published, and clients may have fetched"):
        abort_round(aws.bucket(bucket), "r-1")
    assert read_global(aws, lanes_without_functions) == expected_file({"a": (weights(1), 1)})
    assert read(aws, lanes_without_functions, report_key("r-1")) == report.to_bytes()


def test_a_coordinator_that_is_overtaken_by_an_abort_does_not_publish(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    mark = Lease.mark

    def overtaken(self: Lease, state: str) -> None:
        abort_round(aws.bucket(lanes_without_functions.bucket), "r-1")
        mark(self, state)

    monkeypatch.setattr(Lease, "mark", overtaken)
    with working(aws, lanes_without_functions, 2), pytest.raises(RoundAborted):
        start_round(aws, lanes_without_functions, request())
    assert objects(aws, lanes_without_functions, "models/") == []
    assert objects(aws, lanes_without_functions, "rounds/r-1/shards/") == []
