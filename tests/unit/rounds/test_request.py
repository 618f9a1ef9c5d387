"""What a round was opened with: possible requests, their stored form, and commands that say something else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdas.protocol.errors import InvalidContract, InvalidName
from lambdas.protocol.keys import manifest_key, round_key
from lambdas.protocol.limits import MAX_EXAMPLES
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import BadInput, RoundConflict
from orchestrator.rounds.request import RoundRecord, RoundRequest, open_round, read_record
from tests.support.rounds import read

FULL = RoundRequest(
    model="digits", round_id="r-2", shards=4, min_clients=2, deadline_s=60.0, timeout_s=30.0, min_fraction=0.75,
    expect_clients=("c", "a", "b", "a"), on_deadline="extend", extend_s=15.0, max_extensions=2, on_invalid="exclude",
    max_norm=12.5, max_examples=5000, late_from="r-1",
)  # fmt: skip


def request(**fields: Any) -> RoundRequest:
    return RoundRequest(**{"model": "digits", "round_id": "r-1", **fields})


def test_the_round_record_is_pinned_literally() -> None:
    assert RoundRecord(FULL, 12.5).to_bytes().decode() == (
        '{"deadline_s":60.0,"expect":null,"expect_clients":["a","b","c"],'
        '"extend_s":15.0,"late_from":"r-1","max_examples":5000,"max_extensions":2,"max_norm":12.5,"min_clients":2,'
        '"min_fraction":0.75,"model":"digits","on_deadline":"extend","on_invalid":"exclude","opened_at":12.5,'
        '"round_id":"r-2","schema":2,"shards":4,"timeout_s":30.0,"topology":"grads-sharding"}'
    )


@pytest.mark.parametrize("asked", [FULL, RoundRequest("digits", "r-1"), request(expect=7)])
def test_a_record_survives_its_own_parser(asked: RoundRequest) -> None:
    record = RoundRecord(asked, 1.5)
    assert RoundRecord.from_bytes(record.to_bytes()) == record


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "../x"), ("model", None), ("round_id", "a/b"), ("shards", 0), ("shards", True), ("shards", "4"),
        ("min_clients", 0), ("min_clients", None), ("expect", 0), ("expect", 1.5), ("deadline_s", -1),
        ("deadline_s", "9"), ("timeout_s", 0), ("min_fraction", 2), ("expect_clients", []), ("expect_clients", ["a/b"]),
        ("expect_clients", "a,b"), ("expect_clients", [1]), ("on_deadline", "wait"), ("extend_s", 0),
        ("max_extensions", 0), ("on_invalid", "ignore"), ("max_norm", -1), ("max_norm", "x"), ("max_examples", 0),
        ("max_examples", MAX_EXAMPLES + 1), ("late_from", "r-2"), ("topology", "star"), ("schema", 1),
        ("opened_at", None),
    ],
)  # fmt: skip
def test_a_record_that_no_release_has_written_is_refused(field: str, value: Any) -> None:
    document = json.loads(RoundRecord(FULL, 1.0).to_bytes())
    with pytest.raises(InvalidContract, match="Round record"):
        RoundRecord.from_bytes(json.dumps({**document, field: value}).encode())


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"null", b"\xff", b'{"schema":1', b'{"schema":2}'])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidContract):
        RoundRecord.from_bytes(data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_clients": 0}, "A quorum of 0 clients; expected 1 or more"),
        ({"min_clients": 3, "expect": 2}, "Expecting 2 clients cannot reach the quorum of 3"),
        ({"min_clients": 3, "expect_clients": ("a", "b")}, "Expecting 2 clients cannot reach the quorum of 3"),
        ({"min_fraction": 0.5}, "A quorum as a share of the expected clients needs their number"),
        ({"min_fraction": 0.0, "expect": 2}, "expected a share above 0 and up to 1"),
        ({"min_fraction": 1.5, "expect": 2}, "expected a share above 0 and up to 1"),
        ({"expect": 2, "expect_clients": ("a", "b")}, "give one of the two"),
        ({"deadline_s": float("nan")}, "A deadline of nan s"),
        ({"on_deadline": "extend"}, "Without a deadline there is nothing to extend"),
        ({"on_deadline": "extend", "deadline_s": 9.0, "extend_s": 0.0}, "Extending the deadline by 0.0 s"),
        ({"max_norm": float("inf")}, "A largest norm of inf"),
        ({"max_examples": 0}, "A largest example count of 0"),
        ({"late_from": "r-1"}, "Round r-1 cannot take over its own late updates"),
        ({"on_invalid": "ignore"}, "expected fail or exclude"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        request(**fields)


def test_a_client_that_cannot_be_named_cannot_be_expected() -> None:
    with pytest.raises(InvalidName, match="'a/b' is not a valid client id"):
        request(expect_clients=("a/b",))


@pytest.mark.parametrize(
    ("fraction", "expected", "quorum"), [(0.8, 10, 8), (0.55, 100, 55), (0.7, 10, 7), (0.34, 3, 2), (1.0, 3, 3)]
)
def test_a_share_of_the_expected_clients_is_rounded_up_to_a_count(fraction: float, expected: int, quorum: int) -> None:
    assert request(min_fraction=fraction, expect=expected).quorum == quorum
    assert request(min_fraction=fraction, expect_clients=tuple(f"c{i}" for i in range(expected))).quorum == quorum


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_share_that_was_a_count_comes_back_as_that_count(count: int, expected: int) -> None:
    count = min(count, expected)
    assert request(min_fraction=count / expected, expect=expected).quorum in (count, count + 1)
    assert request(min_fraction=count / 1000, expect=1000).quorum == count


def test_a_count_and_a_share_must_both_be_reached() -> None:
    assert request(min_clients=9, min_fraction=0.5, expect=10).quorum == 9


def test_a_round_that_is_open_refuses_other_options_and_names_them(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    s3, bucket = aws.s3, lanes_without_functions.bucket
    first = open_round(Bucket(s3, bucket), request(shards=4, expect_clients=("a", "b")))
    with pytest.raises(RoundConflict) as caught:
        open_round(Bucket(s3, bucket), request(shards=8, min_clients=2, max_norm=3.0))
    message = str(caught.value)
    for words in (
        "shards is 4, not 8", "min_clients is 1, not 2", "expect_clients is [a, b] (2 clients), not not given",
        "max_norm is not given, not 3.0", "or with --replace-options",
    ):  # fmt: skip
        assert words in message
    assert "deadline" not in message
    assert read_record(Bucket(s3, bucket), "r-1") == first


def test_how_long_a_process_is_patient_makes_no_other_round(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    s3, bucket = aws.s3, lanes_without_functions.bucket
    first = open_round(Bucket(s3, bucket), request(timeout_s=5.0))
    again = open_round(Bucket(s3, bucket), request(timeout_s=9.0))
    assert again == replace(first, request=replace(first.request, timeout_s=9.0))


def test_options_are_replaced_while_the_round_is_open_if_that_is_said_and_the_deadline_counts_anew(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    s3, bucket = aws.s3, lanes_without_functions.bucket
    first = open_round(Bucket(s3, bucket), request(min_clients=8, deadline_s=60.0))
    second = open_round(Bucket(s3, bucket), request(min_clients=2, deadline_s=60.0), replace_options=True)
    assert (second.request.min_clients, second.opened_at > first.opened_at) == (2, True)
    assert RoundRecord.from_bytes(read(aws, lanes_without_functions, round_key("r-1"))) == second
    s3.put_object(Bucket=bucket, Key=manifest_key("r-1"), Body=b"pinned")
    with pytest.raises(RoundConflict, match="Its updates are pinned, so the options stay"):
        open_round(Bucket(s3, bucket), request(min_clients=3), replace_options=True)


def test_a_round_that_was_never_opened_has_no_record(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    assert read_record(aws.bucket(lanes_without_functions.bucket), "r-9") is None
