"""What a report tells about tries that failed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import AggregatorResult, Result, ShardResult
from lambdas.protocol.tree import tree_of
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.errors import QuorumMissed
from orchestrator.progress import Narration
from orchestrator.rounds import report as reports
from orchestrator.rounds.context import Attempt, Averaged, RoundContext
from orchestrator.rounds.publish import Published
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import RoundRecord, RoundRequest
from orchestrator.rounds.tree import TreeRun
from orchestrator.rounds.wait import BadUpdate
from tests.support.manifests import BUCKET, MODEL, ROUND, Update, manifest_of, table_of

DIGEST = "ab" * 32
LANE = Lane(1, "q", "dead", "function", 512, 60, "x86_64", 3)


def a_manifest(topology: str, clients: int, shards: int = 1) -> RoundManifest:
    manifest = manifest_of(table_of(("F32", 8)), [Update(bytes(32))] * clients, shards=shards)
    return replace(manifest, topology=topology)


def an_attempt(manifest: RoundManifest, *failed_tries: Result) -> Attempt:
    lease: Any = SimpleNamespace(coordinators=())
    aws: Any = SimpleNamespace(bucket=lambda name: SimpleNamespace(name=name))
    deployment = Deployment("local", "us-east-1", BUCKET, None, "results", {})
    context = RoundContext(aws, deployment, RoundRecord(RoundRequest(MODEL, ROUND), 1.0), lease, Narration())
    return Attempt(context, manifest, LANE, resumed=False, failed_tries=list(failed_tries))


def published(attempt: Attempt, averaged: Averaged) -> Report:
    latest = LatestModel(MODEL, ROUND, "key", "etag", 1, DIGEST, 1.0, 2.0)
    return reports.published(attempt, averaged, Published(latest, (DIGEST,) * attempt.manifest.shards), ())


def aggregator(level: int, number: int, **fields: Any) -> AggregatorResult:
    same: dict[str, Any] = {"round_id": ROUND, "manifest_sha256": DIGEST, "status": "done"}
    return AggregatorResult(level=level, aggregator=number, **{**same, **fields})


def shard(number: int, **fields: Any) -> ShardResult:
    same: dict[str, Any] = {"round_id": ROUND, "manifest_sha256": DIGEST, "status": "done"}
    return ShardResult(shard=number, **{**same, **fields})


def test_a_failed_try_of_an_aggregator_is_told_as_its_own_and_not_as_a_silent_try_of_another_job() -> None:
    """Several jobs of a tree have the number 2; and the third result is not aggregator 2's, as one was lost."""
    manifest = a_manifest("lifl", 27)
    tree = tree_of(manifest)
    assert tree.widths == (9, 3, 1)
    nodes = [(level, i) for level, width in enumerate(tree.widths) for i in range(width) if (level, i) != (0, 0)]
    run = TreeRun(results={node: aggregator(*node) for node in nodes})
    run.results[0, 2] = aggregator(0, 2, receive_count=2)  # failed once, and reported it
    run.results[1, 2] = aggregator(1, 2, receive_count=2)  # was killed once
    attempt = an_attempt(manifest, aggregator(0, 2, status="retrying", error="S3 answered 503"))
    report = published(attempt, run.outcome(tree))
    (failed,) = report.document["redelivered"]
    assert (failed["level"], failed["aggregator"], failed["error"]) == (0, 2, "S3 answered 503")
    group = "/aws/lambda/function"
    assert report.document["silent_tries"] == [{"level": 1, "aggregator": 2, "tries": 1, "log_group": group}]
    page = report.to_text().splitlines()
    assert "  failed try    aggregator 2 on level 0, delivery 1: S3 answered 503" in page
    assert [line for line in page if "silent" in line] == [
        f"  silent tries  aggregator 2 on level 1: 1 without a result; their log is {group}"
    ]
    assert "shard 2" not in report.to_text()


def test_a_failed_try_of_a_shard_is_not_told_as_a_silent_one() -> None:
    attempt = an_attempt(a_manifest("grads-sharding", 2, shards=4), shard(2, status="retrying", error="slow"))
    report = published(attempt, Averaged([shard(0), shard(2, receive_count=3), shard(3, receive_count=2)]))
    assert [entry["shard"] for entry in report.document["redelivered"]] == [2]
    told = [(entry["shard"], entry["tries"]) for entry in report.document["silent_tries"]]
    assert told == [(2, 1), (3, 1)]


@pytest.mark.parametrize(
    ("result", "named"), [(aggregator(1, 2), {"level": 1, "aggregator": 2}), (shard(2), {"shard": 2})]
)
def test_the_report_of_a_failed_round_names_the_job_and_the_kind_of_the_error(
    result: Result, named: dict[str, int]
) -> None:
    cause = BadUpdate("client a has NaN", result)
    attempt = an_attempt(a_manifest("grads-sharding", 2, shards=4))
    document = reports.failed(attempt, cause, cause).document
    assert {name: document[name] for name in named} == named
    assert (document["error_kind"], document["exit_status"]) == ("RoundFailed", 5)
    document = reports.failed(attempt, QuorumMissed("too few"), cause).document
    assert (document["error_kind"], document["exit_status"]) == ("QuorumMissed", 4)
