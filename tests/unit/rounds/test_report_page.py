"""The report's page: what a reader must find in it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.rounds.report import Report


def ended(**fields: Any) -> str:
    document = {
        "round": "r-1", "model": "net", "status": "failed", "shards": 2, "error": "Round r-1 failed.",
        "participants": [{"client": "a", "num_examples": 1200}, {"client": "b", "num_examples": 3}],
    }  # fmt: skip
    return Report({**document, **fields}).to_text()


def test_participants_have_their_examples_and_the_norms_that_are_known() -> None:
    lines = ended(norms={"a": 2.5, "b": None}).splitlines()
    assert "  client        a, 1,200 examples, L2 norm 2.5" in lines
    assert "  client        b, 3 examples" in lines


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"excluded": [{"client": "x", "reason": "has NaN"}]}, "  left out      client x: has NaN"),
        ({"late_updates": [{"client": "x", "bytes": 2048}]}, "  late          client x, 2,048 bytes"),
        (
            {"redelivered": [{"shard": 1, "receive_count": 2, "error": "S3 said 503"}]},
            "  failed try    shard 1, delivery 2: S3 said 503",
        ),
        (
            {"silent_tries": [{"shard": 0, "tries": 2, "log_group": "/aws/lambda/x"}]},
            "  silent tries  shard 0: 2 without a result; their log is /aws/lambda/x",
        ),
        (
            {"coordinators": [{"host": "ci", "pid": 7, "since": 1767225600.5}]},
            "  coordinator   ci, process 7, since 2026-01-01 00:00:00 UTC",
        ),
    ],
)
def test_exclusions_late_updates_tries_and_coordinators_are_named(fields: dict[str, Any], line: str) -> None:
    assert line in ended(**fields).splitlines()
    assert line not in ended().splitlines()


def test_ten_thousand_participants_do_not_fill_the_terminal() -> None:
    page = ended(participants=[{"client": f"c-{i}", "num_examples": 1} for i in range(10_000)])
    assert "and 9,900 more" in page
    assert len(page.splitlines()) < 110


def test_what_a_client_chose_moves_no_cursor_and_begins_no_line() -> None:
    page = ended(excluded=[{"client": "x", "reason": "tensor '\x1b[2J\n  left out      client a': has NaN"}])
    assert len(page.splitlines()) == len(ended().splitlines()) + 1
    assert "\x1b" not in page
