"""Rounds under random faults: whatever dies, comes twice, late or in another order, the result is the same.

Orchestrators and workers are the real ones. Each AWS call of theirs may be the last: it then has happened or not, and
nothing after it does. They run in turns in one thread, over S3 and SQS in memory, so that a failing run can be
repeated.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from lambdas import shard_average
from lambdas.protocol.keys import coordinator_key, global_key, latest_key, manifest_key, report_key, shards_prefix
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.lease import CoordinatorRecord, Process
from lambdas.protocol.manifest import RoundManifest
from lambdas.shard_average import ShardWorker
from lambdas.storage import shards
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.errors import RoundConflict
from orchestrator.rounds import late, lease, manifest, norms, pin, processes, publish, queues, wait
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import resume_round, start_round
from orchestrator.rounds.stored import stored_shards
from tests.support.manifests import BUCKET
from tests.support.mortal import Killed, Life, Mortal
from tests.support.rounds import expected_file, put, weights
from tests.support.s3 import MemoryS3
from tests.support.servers import RangeServer
from tests.support.sqs import MemorySqs

LANE, RESULTS, DEAD = "memory://lane", "memory://results", "memory://dead"
NAMES = ("a", "b", "c", "d", "e")
RUNS = 200

# What happens around an orchestrator while it waits for results.
EVENTS = st.sampled_from(["work", "work", "work", "crash", "late", "duplicate", "redeliver", "overtake", "hold"])


class Rounds(RuleBasedStateMachine):
    """One round, its clients, workers and orchestrators."""

    server: RangeServer

    @initialize(shards=st.sampled_from([1, 2, 4]), sink=st.sampled_from(["objects", "multipart"]), data=st.data())
    def begin(self, shards: int, sink: str, data: Any) -> None:
        self.server.objects.clear()
        self.s3, self.sqs = MemoryS3(self.server), MemorySqs()
        self.sqs.on_receive, self.sqs.choose = self._while_waiting, self._choose
        lane = Lane(shards, LANE, DEAD, "function", 256, 60, "x86_64", 1000)
        self.deployment = Deployment("local", "us-east-1", BUCKET, None, RESULTS, {shards: lane})
        self.shards = shards
        # With S3's own minimum a part would take megabytes.
        manifest.MIN_PART_BYTES = 1 if sink == "multipart" else 2**40
        self.immortal = self._clients(Life())
        self.told_in: dict[str, tuple[Any, int]] = {}
        self.manifest: bytes | None = None
        self.events: list[str] = []
        self.holding = self.nested = False
        self.orders = itertools.cycle([0])
        self.processes = itertools.count(1)
        self.alive: set[int] = set()
        self.done_again: list[int] = []
        self.idle = 0
        self._submit("a")

    # -- rules --

    @rule(name=st.sampled_from(NAMES))
    def submit(self, name: str) -> None:
        self._submit(name)

    @rule(
        calls=st.integers(0, 60),
        after=st.booleans(),
        resume=st.booleans(),
        events=st.lists(EVENTS, max_size=6),
        orders=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    )
    def drive_until_killed(self, calls: int, after: bool, resume: bool, events: list[str], orders: list[int]) -> None:
        """An orchestrator starts or resumes the round and dies at some call, if it has not finished by then."""
        self.events, self.orders = list(events), itertools.cycle(orders)
        with contextlib.suppress(Killed):
            self._drive(Life(calls, after), resume=resume)
        self.events = []

    @rule(calls=st.one_of(st.none(), st.integers(0, 8)), after=st.booleans(), order=st.integers(0, 9))
    def work(self, calls: int | None, after: bool, order: int) -> None:
        """A worker takes some job; it may die at some call."""
        self.orders = itertools.cycle([order])
        self._work(Life(calls, after))

    @rule()
    def redeliver(self) -> None:
        """The visibility timeout of jobs whose workers died passes."""
        self.sqs.time_out(LANE)

    @precondition(lambda self: self.sqs.queue(LANE))
    @rule(index=st.integers(0, 99))
    def duplicate(self, index: int) -> None:
        """SQS delivers a job twice."""
        self.sqs.duplicate(LANE, index % len(self.sqs.queue(LANE)))

    # -- what they are made of --

    def _clients(self, life: Life) -> AwsClients:
        s3: Any = Mortal(self.s3, life)
        sqs: Any = Mortal(self.sqs, life)
        return AwsClients(s3, sqs)

    def _submit(self, name: str) -> None:
        update = (weights(ord(name)), 1 + ord(name) % 3)
        try:
            put(self.immortal, self.deployment, name, *update)
        except RoundConflict:
            assert name not in self.told_in, f"{name} was told that its update is in the round"
            return
        self.told_in[name] = update

    def _drive(self, life: Life, *, resume: bool) -> Report:
        pid = next(self.processes)
        self.alive.add(pid)
        before, processes.CURRENT = processes.CURRENT, pid
        aws = self._clients(life)
        try:
            if resume and "rounds/r-1/round.json" in self.s3.objects:
                return resume_round(aws, self.deployment, "r-1")
            return start_round(aws, self.deployment, RoundRequest("digits", "r-1", self.shards, timeout_s=60.0))
        except RoundConflict:  # it had been published before the last one was killed
            return Report.from_bytes(self.s3.objects[report_key("r-1")])
        finally:
            processes.CURRENT = before
            self.alive.discard(pid)
            self._look_at_manifest()

    def _work(self, life: Life) -> None:
        aws = self._clients(life)
        received = self.sqs.receive_message(QueueUrl=LANE).get("Messages", [])
        worker = ShardWorker(aws.bucket(BUCKET), aws.sqs, RESULTS)
        for message in received:
            count = int(message["Attributes"]["ApproximateReceiveCount"])
            with contextlib.suppress(Killed):
                if worker.run(message["Body"], receive_count=count, worker="w"):
                    aws.sqs.delete_message(QueueUrl=LANE, ReceiptHandle=message["ReceiptHandle"])

    def _while_waiting(self, url: str) -> None:
        """Something happens whenever an orchestrator waits for results; once the script is over, work is done."""
        if url != RESULTS or self.nested:
            return
        event = self.events.pop(0) if self.events else "finish"
        self.idle = 0 if event != "finish" else self.idle + 1
        assert self.idle < 100, "an orchestrator waits for what never comes"
        if event == "hold":  # results are delayed
            self.holding = not self.holding
        if event == "late":
            self._submit("e")
        if event == "duplicate" and self.sqs.queue(LANE):
            self.sqs.duplicate(LANE, 0)
        if event in ("redeliver", "finish"):
            self.sqs.time_out(LANE)
        if event in ("work", "finish"):
            self._work(Life())
        if event == "crash":
            self._work(Life(3, True))
        if event == "overtake":  # this one seems to be dead: another one takes over, and it wakes up again
            self.nested = True
            sleeper = processes.CURRENT
            self.alive.discard(sleeper)
            try:
                self._drive(Life(30, False), resume=True)
            except Killed:
                pass
            finally:
                self.alive.add(sleeper)
                self.nested = False
        for message in self.sqs.queue(RESULTS):
            message.hidden_s = 1 if self.holding and event != "finish" else 0

    def _choose(self, count: int) -> int:
        return next(self.orders) % count

    def average(self, manifest: RoundManifest, shard: int, *arguments: Any) -> Any:
        """Stands in front of the averaging: what is stored already is not averaged again once a round was resumed."""
        coordinator = CoordinatorRecord.from_bytes(self.s3.objects[coordinator_key("r-1")])
        stored = stored_shards(Bucket(self.immortal.s3, BUCKET), manifest)
        if coordinator.earlier and shard in (stored or {}):
            self.done_again.append(shard)  # not raised: the worker would take it for a fault
        return AVERAGE(manifest, shard, *arguments)

    def _look_at_manifest(self) -> None:
        found = self.s3.objects.get(manifest_key("r-1"))
        if found is None:
            return
        if self.manifest is None:
            self.manifest = found
            pinned = {p.client for p in RoundManifest.from_bytes(found).participants}
            assert pinned == set(self.told_in) or self.told_in.keys() > pinned, "somebody is in who was not told"
        assert found == self.manifest, "a round that was pinned was pinned anew"

    def teardown(self) -> None:
        """At last one orchestrator lives long enough."""
        if not hasattr(self, "s3"):
            return
        self.events, self.holding, self.orders = [], False, itertools.cycle([0])
        self.idle = 0
        report = self._drive(Life(), resume=False).document
        assert self.done_again == [], "shards that were done were averaged again"
        assert report["status"] == "published"
        manifest = RoundManifest.from_bytes(self.s3.objects[manifest_key("r-1")])
        pinned = {p.client: (weights(ord(p.client)), 1 + ord(p.client) % 3) for p in manifest.participants}
        assert set(pinned) == set(self.told_in), "who was told to be in the round is in it, and nobody else"
        # Jobs that come late change nothing and leave nothing.
        self.sqs.time_out(LANE)
        while any(not message.hidden_s for message in self.sqs.queue(LANE)):
            self._work(Life())
        assert self.sqs.queue(LANE) == []
        assert self.sqs.queue(DEAD) == []
        assert self.s3.objects[global_key("digits", "r-1")] == expected_file(pinned)
        assert LatestModel.from_bytes(self.s3.objects[latest_key("digits")]).round_id == "r-1"
        assert self.s3.uploads == {}
        assert [key for key in self.s3.objects if key.startswith(shards_prefix("r-1"))] == []


AVERAGE = shard_average.average_shard


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody waits, nothing runs at the same time, and processes are the machine's own."""
    for module in (queues, pin, late, norms):
        monkeypatch.setattr(module, "REQUESTS_AT_ONCE", 1)
    monkeypatch.setattr(publish, "_SHARDS_AT_ONCE", 1)
    monkeypatch.setattr(manifest, "MIN_PART_BYTES", manifest.MIN_PART_BYTES)
    monkeypatch.setattr(shards, "MIN_PART_BYTES", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(wait, "_GRACE_S", 0.0)
    monkeypatch.setattr(lease, "WATCH_EVERY_S", 0.0)
    monkeypatch.setattr(processes, "CURRENT", 0, raising=False)
    with RangeServer() as server:
        monkeypatch.setattr(Rounds, "server", server, raising=False)
        yield


def test_a_round_survives_any_mixture_of_faults(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    machines: list[Rounds] = []

    class Watched(Rounds):
        def __init__(self) -> None:
            super().__init__()
            machines[:] = [self]

    def this_process() -> Process:
        return Process("host", processes.CURRENT, "machine", "", 0.0)

    monkeypatch.setattr(lease, "this_process", this_process)
    monkeypatch.setattr(lease, "is_gone", lambda process: process.pid not in machines[0].alive)
    monkeypatch.setattr(shard_average, "average_shard", lambda *a: machines[0].average(*a))
    run_state_machine_as_test(
        Watched,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=False,
            print_blob=True,
        ),
    )
