"""Jobs and results: their bytes, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.limits import MAX_SHARDS
from lambdas.protocol.messages import (
    AggregatorJob,
    AggregatorResult,
    Partial,
    ShardJob,
    ShardResult,
    ShardStats,
    parse_job,
    parse_result,
)
from tests.support.examples import DIGEST

AGGREGATOR_JOB = AggregatorJob("r-1", DIGEST, 1, 2, (Partial('"e"'), Partial(segment="s")), 1, True)
SHARD_RESULT = ShardResult(round_id="r-1", manifest_sha256=DIGEST, shard=1, status="done")
AGGREGATOR_RESULT = AggregatorResult(round_id="r-1", manifest_sha256=DIGEST, level=1, aggregator=2, status="missing")


def test_a_jobs_json_is_pinned_literally() -> None:
    text = '{"attempt":2,"manifest_sha256":"' + DIGEST + '","round_id":"r-1","schema":1,"shard":3}'
    assert ShardJob("r-1", DIGEST, 3, 2).to_json() == text
    assert ShardJob.from_bytes(text) == ShardJob("r-1", DIGEST, 3, 2)


def test_a_results_json_is_pinned_literally() -> None:
    result = ShardResult(
        round_id="r-1", manifest_sha256=DIGEST, shard=3, status="done", etag='"e"', sha256=DIGEST, receive_count=2,
        worker="f/1", memory_mb=256,
        stats=ShardStats(10, 5, 0.5, 0.25, 0.125, 1.0, 0.75, 64.5, 3, 1, 0),
    )  # fmt: skip
    text = (
        '{"bad":[],"client":null,"error":null,"error_kind":null,"etag":"\\"e\\"",'
        '"manifest_sha256":"' + DIGEST + '",'
        '"memory_mb":256,"norms":null,"receive_count":2,"round_id":"r-1","schema":1,'
        '"sha256":"' + DIGEST + '","shard":3,"stats":'
        '{"bytes_read":10,"bytes_written":5,"compute_s":0.25,"cpu_s":0.75,"gets":3,"peak_rss_mb":64.5,"puts":1,'
        '"read_s":0.5,"retries":0,"wall_s":1.0,"write_s":0.125},"status":"done","worker":"f/1"}'
    )
    assert result.to_json() == text
    assert ShardResult.from_bytes(text) == result


def test_a_job_message_stays_far_below_the_limit_of_a_queue() -> None:
    assert len(ShardJob("r" * 128, DIGEST, MAX_SHARDS - 1, 1_000_000).to_json()) < 1024


def test_an_aggregator_jobs_json_is_pinned_literally() -> None:
    text = (
        '{"aggregator":2,"attempt":1,"in_s3":true,"inputs":[{"etag":"\\"e\\"","segment":null},'
        '{"etag":null,"segment":"s"}],"level":1,"manifest_sha256":"' + DIGEST + '","round_id":"r-1","schema":1}'
    )
    assert AGGREGATOR_JOB.to_json() == text
    assert AggregatorJob.from_bytes(text) == AGGREGATOR_JOB


def test_a_message_is_told_by_its_level() -> None:
    shard_job = ShardJob("r-1", DIGEST, 3, 2)
    for message, parse in (
        (shard_job, parse_job), (AGGREGATOR_JOB, parse_job),
        (SHARD_RESULT, parse_result), (AGGREGATOR_RESULT, parse_result),
    ):  # fmt: skip
        assert parse(message.to_json()) == message


@pytest.mark.parametrize(
    ("message", "change", "expected"),
    [
        (AGGREGATOR_JOB, {"inputs": [{}]}, r"^Aggregator job: inputs\[0\]: expected either an etag or a segment\.$"),
        (AGGREGATOR_JOB, {"level": 3}, "^Aggregator job: field 'level': expected an integer from 0 to 2, found 3"),
        (AGGREGATOR_JOB, {"in_s3": 1}, "field 'in_s3': expected true or false, found 1"),
        (AGGREGATOR_RESULT, {"status": "lost"}, "'status': expected one of done, failed, retrying, missing, found 'lo"),
        (SHARD_RESULT, {"status": "missing"}, "'status': expected one of done, failed, retrying, found 'missing'"),
        (SHARD_RESULT, {"stats": {}}, "^Shard result: field 'stats.bytes_read': expected an integer .* found nothing"),
        (SHARD_RESULT, {"bad": [{"client": "a/b"}]}, r"field 'bad\[0\].client': expected a client id of 1 to 128"),
        (SHARD_RESULT, {"shard": 10_000}, "field 'shard': expected an integer from 0 to 9999, found 10000"),
        (
            SHARD_RESULT,
            {"sha256": "AB" * 32},
            "field 'sha256': expected a SHA-256 in lower-case hexadecimal, found",
        ),
        (SHARD_RESULT, {"sha256": DIGEST + "\n"}, "field 'sha256': expected a SHA-256"),
    ],
)
def test_a_message_that_cannot_be_is_refused_and_the_field_is_named(
    message: AggregatorJob | ShardResult | AggregatorResult, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidContract, match=expected):
        type(message).from_bytes(json.dumps({**json.loads(message.to_json()), **change}))
