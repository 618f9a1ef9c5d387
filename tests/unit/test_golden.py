"""Stored bytes, pinned: every file under tests/golden holds what this product writes, byte for byte.

These files may never change. A bucket or a queue holds such bytes, written by an earlier release:

- `update-*.safetensors` (client updates), `partial-*.safetensors` (partial sums of trees),
- `model*.safetensors` (global models), `norms.bin` (sums of squares),
- `job-*.json`, `result-*.json` (messages), `latest.json` (the pointer to the newest model); their schema stays 1.

These files may change only where a field is renamed, and then the document's schema number rises by one:

- `manifest-*.json`, `round*.json`, `coordinator*.json`, `report-*.json`.

One such change is planned: `topology` becomes `topology` (in a report's `lane`: `cpu_architecture`), `coordinator.json`
becomes `coordinator.json`, a report's `coordinators` becomes `coordinators`, and schema 1 becomes 2. A report's
`manifest_sha256` follows the manifest. Every other field keeps its name and value.

To pin a document again, delete its file and run the tests twice: the first run writes the file and fails. Compare it
with the file that Git has, field by field; nothing but the renamed fields may differ.

All inputs come from formulas: no random numbers, no clock, no host name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lambdas.protocol.keys import (
    coordinator_key,
    global_key,
    latest_key,
    manifest_key,
    norms_key,
    partial_key,
    report_key,
    round_key,
    shard_key,
    update_key,
)
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.lease import CoordinatorRecord, Process
from lambdas.protocol.manifest import Exclusion, Output, Participant, RoundManifest
from lambdas.protocol.messages import (
    AggregatorJob,
    AggregatorResult,
    Partial,
    Result,
    ShardJob,
    ShardResult,
    ShardStats,
    parse_job,
    parse_result,
)
from lambdas.protocol.safetensors import global_header, parse_update_header
from lambdas.protocol.tensor_table import TensorSpec, TensorTable, shard_bounds
from lambdas.protocol.topologies import GRADS_SHARDING, LAMBDA_FL, LIFL
from lambdas.protocol.tree import tree_of
from lambdas.shard_average import ShardWorker
from lambdas.storage.bucket import Bucket
from lambdas.tree_average import AggregatorWorker
from lambdas.worker import Worker
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.client.sources import Tensors, from_state_dict
from orchestrator.client.submit import submit
from orchestrator.errors import RoundFailed
from orchestrator.progress import Narration
from orchestrator.rounds import report as reports
from orchestrator.rounds.context import Attempt, Averaged, RoundContext
from orchestrator.rounds.pin import Update
from orchestrator.rounds.publish import Published
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import RoundRecord, RoundRequest
from orchestrator.rounds.tree import TreeRun
from orchestrator.rounds.wait import BadUpdate
from tests.support.objects import etag_of
from tests.support.s3 import MemoryS3, Upload
from tests.support.servers import RangeServer
from tests.support.sqs import MemorySqs

GOLDEN = Path(__file__).parent.parent / "golden"
BUCKET, ROUND, MODEL = "bucket", "r-1", "digits"
DIGEST = "0123456789abcdef" * 4
PINNED_AT, PUBLISHED_AT = 1767225600.25, 1767225660.5
WORKER_MEMORY_MB = 256

# Client id, example count and wire dtype: three layouts, and trees of (2, 1) and (3, 2, 1) aggregators.
CLIENTS = (("a", 120, None), ("b", 7, "BF16"), ("c", 1, "F16"), ("d", 3001, None), ("e", 64, "BF16"))

MULTIPART = Output("multipart", global_key(MODEL, ROUND), "upload-7")
OBJECTS = Output("objects", global_key(MODEL, ROUND))

# Shards of a few bytes become parts of an upload.
pytestmark = pytest.mark.usefixtures("tiny_parts")


def check(name: str, found: bytes | str) -> None:
    """Compare bytes with a golden file. A missing file is written, and the test fails once."""
    path, data = GOLDEN / name, found.encode() if isinstance(found, str) else found
    if not path.exists():
        path.write_bytes(data)
        pytest.fail(f"{path} was missing. It is written now: look at it, and run the test again.")
    assert data == path.read_bytes(), f"{name} has changed"


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


# --- a round of five clients ---------------------------------------------------------------------------------------


def eighths(client: int, first: int, count: int) -> np.ndarray[Any, Any]:
    """Numbers from -250 to 250 in steps of 1/8: exact in float16, rounded in bfloat16, many of them halfway."""
    return np.array([((client + 1) * (first + i + 1) * 2654435761 % 4001 - 2000) / 8 for i in range(count)])


def state_dict(client: int) -> dict[str, np.ndarray[Any, Any]]:
    """Every dtype that numpy has, in no order; a scalar, a tensor without values and a name that is not ASCII."""
    return {
        "mask": np.array([client % 2 == 0, client < 2, client > 2, True, False]),
        "head.bias": eighths(client, 0, 3).astype(np.float32),
        "layer.weight": eighths(client, 3, 6).astype(np.float32).reshape(2, 3),
        "bn.num_batches_tracked": np.array(10 + 3 * client, dtype=np.int64),
        "größe": np.array(eighths(client, 9, 1)[0], dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
        "double": eighths(client, 10, 3) / 7,
        "half": eighths(client, 13, 5).astype(np.float16),
        "i32": np.array([-70000 * client, 70000 + client], dtype=np.int32),
        "i16": np.array([-300 * client, 5 - client], dtype=np.int16),
        "i8": np.array([-128, 127, -client], dtype=np.int8),
        "u64": np.array([2**52 + client, client], dtype=np.uint64),
        "u32": np.array([2**32 - 1 - client], dtype=np.uint32),
        "u16": np.array([65535, 2 * client], dtype=np.uint16),
        "u8": np.array([255, client, 3 * client], dtype=np.uint8),
    }


def tensors(client: int) -> Tensors:
    """The state_dict, and a bfloat16 tensor, which numpy does not have: the upper halves of float32 values."""
    mine = from_state_dict(state_dict(client))
    count = len(mine.table.tensors)
    brain = (eighths(client, 18, 4).astype("<f4").view("<u4") >> 16).astype("<u2")
    table = TensorTable((*mine.table.tensors, TensorSpec("brain", "BF16", (2, 2))))
    return Tensors(table, lambda index: iter((brain.data.cast("B"),)) if index == count else mine.read(index))


class Round:
    """Updates as `submit` stores them, and workers that average them."""

    def __init__(self, server: RangeServer) -> None:
        self.s3: Any = MemoryS3(server, uploads={"upload-7": Upload(MULTIPART.key, "SHA256")})
        self.sqs: Any = MemorySqs()
        participants, layouts = [], dict[tuple[str, ...], int]()
        for index, (client, examples, wire) in enumerate(CLIENTS):
            submitted = submit(Bucket(self.s3, BUCKET), ROUND, client, tensors(index), examples, wire=wire)
            body = self.s3.objects[submitted.key]
            header = parse_update_header(body[8 : 8 + int.from_bytes(body[:8], "little")], len(body))
            self.table = header.table
            participants.append(
                Participant(
                    client=client,
                    key=submitted.key,
                    etag=etag_of(body),
                    size=submitted.nbytes,
                    data_offset=header.data_offset,
                    num_examples=header.num_examples,
                    header_sha256=submitted.header_sha256,
                    data_sha256=submitted.data_sha256,
                    layout=layouts.setdefault(header.dtypes, len(layouts)),
                )
            )
        self.participants, self.layouts = tuple(participants), tuple(layouts)

    def update(self, client: str) -> bytes:
        body: bytes = self.s3.objects[update_key(ROUND, client)]
        return body

    def manifest(self, topology: str = GRADS_SHARDING, shards: int = 1, **fields: Any) -> RoundManifest:
        return RoundManifest(
            **{
                "round_id": ROUND,
                "model": MODEL,
                "participants": self.participants,
                "table": self.table,
                "layouts": self.layouts,
                "bounds": shard_bounds(self.table, shards),
                "output": OBJECTS,
                "created_at": PINNED_AT,
                "topology": topology,
                **fields,
            }
        )

    def replanned(self) -> RoundManifest:
        """The second revision: without two clients, its norms in objects."""
        excluded = (
            Exclusion("b", "NonFiniteUpdate", "client b: tensor 'größe' has NaN at index 0"),
            Exclusion("z", "NotExpected", "is not among the clients whom the round expects"),
        )
        left = tuple(p for p in self.participants if p.client != "b")
        return self.manifest(shards=4, participants=left, revision=1, excluded=excluded, norms="objects")

    def average(self, manifest: RoundManifest) -> None:
        """Run the jobs of a sharded round."""
        self.s3.objects[manifest_key(ROUND)] = manifest.to_bytes()
        worker = ShardWorker(Bucket(self.s3, BUCKET), self.sqs, "results", memory_mb=WORKER_MEMORY_MB)
        for shard in range(manifest.shards):
            self._run(worker, ShardJob(ROUND, manifest.sha256, shard))

    def aggregate(self, manifest: RoundManifest) -> None:
        """Run the jobs of a tree, level by level."""
        self.s3.objects[manifest_key(ROUND)] = manifest.to_bytes()
        worker = AggregatorWorker(Bucket(self.s3, BUCKET), self.sqs, "results", memory_mb=WORKER_MEMORY_MB)
        tree, etags = tree_of(manifest), dict[tuple[int, int], str]()
        for level, width in enumerate(tree.widths):
            for index in range(width):
                inputs = tuple(Partial(etag=etags[level - 1, i]) for i in tree.inputs(level, index) if level)
                job = AggregatorJob(ROUND, manifest.sha256, level, index, inputs)
                etags[level, index] = self._run(worker, job).etag or ""

    def _run(self, worker: Worker, job: ShardJob | AggregatorJob) -> Result:
        assert worker.run(job.to_json(), receive_count=1, worker="golden")
        result = parse_result(self.sqs.bodies("results")[-1])
        assert result.status == "done", result.error
        return result

    def stored_model(self, manifest: RoundManifest) -> bytes:
        """The global model: the upload's parts, or the file header and the shards' objects."""
        if manifest.output.upload_id is not None:
            parts = self.s3.uploads[manifest.output.upload_id].parts
            return b"".join(parts[shard + 1] for shard in range(manifest.shards))
        shards = [self.s3.objects[manifest.shard_key(shard)] for shard in range(manifest.shards)]
        return global_header(manifest.table) + b"".join(shards)

    def stored_partial(self, manifest: RoundManifest, level: int, aggregator: int) -> bytes:
        """A partial sum. DIGEST replaces the manifest's digest in its header, so that the manifest may change."""
        digest = manifest.sha256
        body: bytes = self.s3.objects[partial_key(ROUND, digest, level, aggregator)]
        assert body.count(digest.encode()) == 1
        return body.replace(digest.encode(), DIGEST.encode())


@pytest.fixture
def scene() -> Iterator[Round]:
    with RangeServer() as server:
        yield Round(server)


# --- never to change: keys, updates, models, partial sums, messages, the pointer -----------------------------------


def test_the_keys_of_stored_objects() -> None:
    assert [
        round_key("r"), update_key("r", "c"), manifest_key("r"), shard_key("r", 3, 16, 2), norms_key("r", 3, 16, 2),
        partial_key("r", DIGEST, 1, 2), report_key("r"), global_key("m", "r"), latest_key("m"),
    ] == [
        "rounds/r/round.json", "rounds/r/updates/c.safetensors", "rounds/r/manifest.json",
        "rounds/r/shards/r2/00003-of-00016", "rounds/r/norms/r2/00003-of-00016",
        "rounds/r/partials/0123456789abcdef/level-1/00002.safetensors", "rounds/r/report.json",
        "models/m/r/global.safetensors", "models/m/latest.json",
    ]  # fmt: skip


@pytest.mark.parametrize(("client", "name"), [("a", "float32"), ("b", "bfloat16"), ("c", "float16")])
def test_an_update(scene: Round, client: str, name: str) -> None:
    check(f"update-{name}.safetensors", scene.update(client))


@pytest.mark.parametrize(("shards", "output"), [(1, MULTIPART), (4, MULTIPART), (1, OBJECTS), (4, OBJECTS)])
def test_a_global_model_of_any_number_of_shards(scene: Round, shards: int, output: Output) -> None:
    manifest = scene.manifest(shards=shards, output=output)
    scene.average(manifest)
    check("model.safetensors", scene.stored_model(manifest))


def test_the_global_model_of_a_replanned_round_and_a_shards_norms(scene: Round) -> None:
    manifest = scene.replanned()
    scene.average(manifest)
    check("model-replanned.safetensors", scene.stored_model(manifest))
    # The last shard: its squares are exact, so the order of summation does not matter.
    check("norms.bin", scene.s3.objects[norms_key(ROUND, 3, 4, 1)])


@pytest.mark.parametrize(("topology", "level"), [(LAMBDA_FL, 0), (LIFL, 1)])
def test_the_global_model_of_a_tree_and_a_partial_sum(scene: Round, topology: str, level: int) -> None:
    manifest = scene.manifest(topology)
    scene.aggregate(manifest)
    check(f"model-{topology}.safetensors", scene.stored_model(manifest))
    check(f"partial-{topology}.safetensors", scene.stored_partial(manifest, level, 0))


JOBS = {
    "job-shard.json": ShardJob(ROUND, DIGEST, 3),
    "job-shard-again.json": ShardJob(ROUND, DIGEST, 9_999, attempt=2),
    "job-tree-leaf.json": AggregatorJob(ROUND, DIGEST, 0, 1),
    "job-tree.json": AggregatorJob(
        ROUND, DIGEST, 1, 2, (Partial(etag='"e"'), Partial(segment="m/s-0-1")), 3, in_s3=True
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job(name: str) -> None:
    check(name, JOBS[name].to_json())
    assert parse_job(golden(name)) == JOBS[name]


STATS = ShardStats(4096, 512, 0.5, 0.25, 0.125, 0.875, 0.75, 64.5, 7, 1, 0)


def a_result(shard: int, **fields: Any) -> ShardResult:
    return ShardResult(shard=shard, **_done(etag=f'"e{shard}"', **fields))


def an_aggregators_result(level: int, aggregator: int, **fields: Any) -> AggregatorResult:
    return AggregatorResult(level=level, aggregator=aggregator, **_done(**{"etag": '"e0"', **fields}))


def _done(**fields: Any) -> dict[str, Any]:
    same = {"round_id": ROUND, "manifest_sha256": DIGEST, "status": "done", "sha256": DIGEST}
    return {**same, "worker": "fn/request-1", "memory_mb": 256, "stats": STATS, **fields}


def a_failure(**fields: Any) -> ShardResult:
    return ShardResult(
        round_id=ROUND, manifest_sha256=DIGEST, shard=2, status="failed", error_kind="NonFiniteUpdate",
        error="client b: tensor 'größe' has NaN at index 0", client="b", receive_count=2,
        worker="fn/request-2", memory_mb=256,
        bad=(Exclusion("b", "NonFiniteUpdate", "client b: tensor 'größe' has NaN at index 0"),),
    )  # fmt: skip


RESULTS = {
    "result-done.json": a_result(1, norms="AAAAAAAA8D8AAAAAAAAAQA=="),
    "result-failed.json": a_failure(),
    "result-partial.json": an_aggregators_result(1, 2, etag=None, segment="m/s-1-2"),
    "result-missing.json": AggregatorResult(
        round_id=ROUND,
        manifest_sha256=DIGEST,
        status="missing",
        level=1,
        aggregator=0,
        missing=(0, 1),
        error_kind="PartialsMissing",
        error="gone",
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result(name: str) -> None:
    check(name, RESULTS[name].to_json())
    assert parse_result(golden(name)) == RESULTS[name]


LATEST = LatestModel(MODEL, ROUND, global_key(MODEL, ROUND), '"e"', 1234, DIGEST, PINNED_AT, PUBLISHED_AT)


def test_the_pointer_to_the_newest_model() -> None:
    check("latest.json", LATEST.to_bytes())
    assert LatestModel.from_bytes(golden("latest.json")) == LATEST


# --- fields may be renamed, with a new schema number: manifest, round, coordinator, report -------------------------


MANIFESTS: dict[str, Callable[[Round], RoundManifest]] = {
    "manifest-multipart.json": lambda scene: scene.manifest(shards=4, output=MULTIPART),
    "manifest-objects.json": lambda scene: scene.replanned(),
    "manifest-lambda-fl.json": lambda scene: scene.manifest(LAMBDA_FL),
    "manifest-lifl.json": lambda scene: scene.manifest(LIFL),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest(scene: Round, name: str) -> None:
    manifest = MANIFESTS[name](scene)
    check(name, manifest.to_bytes())
    assert RoundManifest.from_bytes(golden(name)) == manifest


REQUEST = RoundRequest(
    MODEL,
    ROUND,
    shards=4,
    min_clients=2,
    deadline_s=1800.0,
    timeout_s=600.0,
    min_fraction=0.55,
    expect_clients=("a", "b", "c", "d", "e"),
    on_deadline="extend",
    extend_s=60.0,
    max_extensions=5,
    on_invalid="exclude",
    max_norm=1e6,
    max_examples=10_000,
    late_from="r-0",
    topology=GRADS_SHARDING,
)


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("round.json", REQUEST),
        ("round-defaults.json", RoundRequest(MODEL, ROUND)),
        ("round-lifl.json", RoundRequest(MODEL, ROUND, expect=5, topology=LIFL)),
    ],
)
def test_a_round_record(name: str, request_: RoundRequest) -> None:
    record = RoundRecord(request_, PINNED_AT)
    check(name, record.to_bytes())
    assert RoundRecord.from_bytes(golden(name)) == record


FIRST = Process("host-1", 4711, "host-1/boot/4026531836", "123456", PINNED_AT)
SECOND = Process("host-2", 12, "host-2/boot/4026531836", "", PUBLISHED_AT)
DRIVEN = CoordinatorRecord(ROUND, "0" * 32, FIRST, 30.0)
STOPPED = replace(
    DRIVEN.renewed().succeeded_by(SECOND, "1" * 32, 30.0).renewed(),
    state="stopped",
    error={"kind": "RoundFailed", "message": "größe", "exit_status": 4},
)


@pytest.mark.parametrize(("name", "record"), [("coordinator.json", DRIVEN), ("coordinator-stopped.json", STOPPED)])
def test_a_driver_record(name: str, record: CoordinatorRecord) -> None:
    assert coordinator_key("r") == "rounds/r/coordinator.json"
    check(name, record.to_bytes())
    assert CoordinatorRecord.from_bytes(golden(name)) == record


LANE = Lane(4, "https://queue/lane", "https://queue/dead", "fedagg-shards-4", 256, 60, "arm64", 3)
SECONDS = {"waiting": 1.0004, "pinning": 0.25, "queueing": 0.125, "averaging": 3.0, "publishing": 0.5, "total": 4.8754}


def an_attempt(
    manifest: RoundManifest, request: RoundRequest = REQUEST, coordinators: tuple[Process, ...] = (FIRST, SECOND)
) -> Attempt:
    nothing: Any = None
    lease: Any = SimpleNamespace(coordinators=coordinators)
    clock: Any = SimpleNamespace(seconds=lambda: SECONDS)
    deployment = Deployment("local", "us-east-1", BUCKET, None, "q", {})
    record = RoundRecord(request, PINNED_AT)
    context = RoundContext(AwsClients(nothing, nothing), deployment, record, lease, Narration(), clock=clock)
    return Attempt(context, manifest, LANE, resumed=False)


def published_report(attempt: Attempt, averaged: Averaged, late: tuple[Update, ...] = ()) -> Report:
    """A report of a round that has published; what the planner predicts, which is tested elsewhere, is left out."""
    done = Published(LATEST, tuple([DIGEST] * attempt.manifest.shards))
    report = reports.published(attempt, averaged, done, late)
    predicted = report.document["predicted_on_aws"]
    assert sorted(predicted) == ["seconds", "usd"]
    return Report({**report.document, "predicted_on_aws": dict.fromkeys(predicted, 0.0)})


def test_the_report_of_a_sharded_round(scene: Round) -> None:
    attempt = an_attempt(scene.replanned())
    attempt.failed_tries.append(replace(a_failure(), status="retrying", shard=1, bad=(), client=None))
    results = [a_result(0), a_result(1, receive_count=3), a_result(3, norms="AAAAAAAA8D8=")]
    late = (Update("y", update_key(ROUND, "y"), '"late"', 1000, PUBLISHED_AT),)
    norms = {"a": 1.5, "c": 0.1, "d": float("inf"), "e": 2.0}
    report = published_report(attempt, Averaged(results, norms=norms), late)
    check("report-published.json", report.to_bytes())
    assert Report.from_bytes(golden("report-published.json")).to_bytes() == golden("report-published.json")


def test_the_report_of_a_tree(scene: Round) -> None:
    manifest = scene.manifest(LIFL)
    run = TreeRun(
        results={
            (0, 0): an_aggregators_result(0, 0, etag=None, segment="m/s-0-0"),
            (0, 1): an_aggregators_result(0, 1),
            (2, 0): an_aggregators_result(2, 0),
        },
        level_s={0: 1.5, 1: 0.25, 2: 0.5},
        recomputed={(0, 1)},
    )
    attempt = an_attempt(manifest, RoundRequest(MODEL, ROUND))
    report = published_report(attempt, run.outcome(tree_of(manifest)))
    check("report-lifl.json", report.to_bytes())
    assert Report.from_bytes(golden("report-lifl.json")).to_bytes() == golden("report-lifl.json")


def test_the_report_of_a_round_that_failed(scene: Round) -> None:
    cause = BadUpdate("Round r-1: a bad update.", a_failure(), a_failure().bad)
    report = reports.failed(an_attempt(scene.manifest(shards=4), coordinators=(FIRST,)), RoundFailed("größe"), cause)
    check("report-failed.json", report.to_bytes())
    assert Report.from_bytes(golden("report-failed.json")).to_bytes() == golden("report-failed.json")


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "not-pinned"])
def test_the_report_of_a_round_that_was_aborted(scene: Round, pinned: bool) -> None:
    record = RoundRecord(REQUEST, PINNED_AT)
    report = reports.aborted(
        BUCKET, record, scene.manifest(shards=4) if pinned else None, replace(STOPPED, state="aborted")
    )
    name = f"report-aborted-{'' if pinned else 'not-'}pinned.json"
    check(name, report.to_bytes())
    assert Report.from_bytes(golden(name)).to_bytes() == golden(name)


def test_every_golden_file_is_compared() -> None:
    """Fail on a file that no test names."""
    source = Path(__file__).read_text()
    made = {f"update-{n}.safetensors" for n in ("float32", "bfloat16", "float16")}
    made |= {f"{n}-{t}.safetensors" for n in ("model", "partial") for t in (LAMBDA_FL, LIFL)}
    made |= {f"report-aborted-{n}.json" for n in ("pinned", "not-pinned")}
    assert [p.name for p in sorted(GOLDEN.iterdir()) if p.name not in made and f'"{p.name}"' not in source] == []
