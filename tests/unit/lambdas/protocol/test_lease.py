"""The coordinator record: its stored bytes, its succession, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.lease import CoordinatorRecord, Process

PROCESS = Process("host", 7, "machine", "12", 1.5)
RECORD = CoordinatorRecord(
    "r-1", "token", PROCESS, 30.0, "stopped", 3, (PROCESS,),
    {"kind": "RoundFailed", "message": "No.", "exit_status": 4},
)  # fmt: skip
PROCESS_JSON = '{"host":"host","machine":"machine","pid":7,"since":1.5,"started":"12"}'


def test_a_records_json_is_pinned_literally() -> None:
    assert RECORD.to_bytes().decode() == (
        '{"beat":3,"earlier":[' + PROCESS_JSON + '],"error":{"exit_status":4,"kind":"RoundFailed","message":"No."},'
        '"lease_s":30.0,"process":' + PROCESS_JSON + ',"round_id":"r-1","schema":2,"state":"stopped","token":"token"}'
    )
    for record in (RECORD, replace(RECORD, error=None), RECORD.renewed()):
        assert CoordinatorRecord.from_bytes(record.to_bytes()) == record


def test_every_renewal_changes_the_bytes() -> None:
    assert RECORD.renewed().to_bytes() != RECORD.to_bytes()


def test_a_successor_starts_anew_and_remembers_the_last_fifty_before_it() -> None:
    record = RECORD
    for pid in range(60):
        record = record.succeeded_by(replace(PROCESS, pid=pid), f"token-{pid}", 30.0)
    assert (record.state, record.beat, record.error, record.token) == ("running", 0, None, "token-59")
    assert [process.pid for process in record.earlier] == list(range(9, 59))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "schema is 1, this version reads 2"),
        ({"state": "driving"}, "field 'state': expected one of running, publishing, .*, found 'driving'"),
        ({"process": {}}, "^Coordinator record: field 'process.host': expected a Unicode string, found nothing"),
        ({"earlier": [None]}, r"field 'earlier\[0\]': expected a JSON object, found None"),
        (
            {"error": {"kind": "K", "message": "M", "exit_status": 256}},
            "'error.exit_status': .* found 256",
        ),
        # It would be found out only when the record is written again.
        ({"token": "\ud800"}, "field 'token': expected a Unicode string"),
    ],
)
def test_a_record_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidContract, match=message):
        CoordinatorRecord.from_bytes(json.dumps({**json.loads(RECORD.to_bytes()), **change}).encode())
