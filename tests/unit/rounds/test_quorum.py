"""Waiting for updates: who counts, until when, and what happens below the quorum."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import QuorumMissed
from orchestrator.progress import Narration
from orchestrator.rounds import quorum
from orchestrator.rounds.quorum import Window, wait_for_updates
from orchestrator.rounds.request import RoundRecord, RoundRequest
from tests.support.contexts import context_of
from tests.support.rounds import put, weights


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quorum, "_POLL_S", (0.05, 0.1))


class Heard(Narration):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def waiting(
    aws: AwsClients,
    deployment: Deployment,
    opened_at: float | None = None,
    narration: Narration | None = None,
    **fields: Any,
) -> list[str]:
    record = RoundRecord(RoundRequest("digits", "r-1", **fields), opened_at if opened_at is not None else time.time())
    return [u.client for u in wait_for_updates(context_of(aws, deployment, record, narration))]


def later(seconds: float, aws: AwsClients, deployment: Deployment, client: str) -> None:
    timer = threading.Timer(seconds, put, (aws, deployment, client, weights(ord(client))))
    timer.daemon = True
    timer.start()


def test_a_list_of_clients_is_waited_for_by_name_and_others_do_not_count(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    for client in ("a", "x", "y", "z"):
        put(aws, lanes_without_functions, client, weights(1))
    later(0.3, aws, lanes_without_functions, "b")
    found = waiting(aws, lanes_without_functions, expect_clients=("a", "b"), deadline_s=20.0)
    assert found == ["a", "b"]


def test_at_the_deadline_a_share_of_the_listed_clients_is_enough(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    for client in ("a", "b", "x"):
        put(aws, lanes_without_functions, client, weights(1))
    listed = {"expect_clients": ("a", "b", "c"), "deadline_s": 0.3}
    assert waiting(aws, lanes_without_functions, min_fraction=0.6, **listed) == ["a", "b"]
    with pytest.raises(QuorumMissed, match="has 2 of the 3 updates of its quorum after its deadline of 0 s") as caught:
        waiting(aws, lanes_without_functions, min_fraction=0.7, **listed)
    assert caught.value.exit_status == 4
    assert "--replace-options" in str(caught.value)


def test_the_deadline_counts_from_the_opening_of_the_round_whoever_waits(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    began = time.monotonic()
    with pytest.raises(QuorumMissed, match="after its deadline of 3600 s"):
        waiting(aws, lanes_without_functions, time.time() - 3601, min_clients=2, deadline_s=3600.0)
    assert time.monotonic() - began < 60


def test_an_extended_round_closes_as_soon_as_its_quorum_is_in(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    heard = Heard()
    later(0.6, aws, lanes_without_functions, "b")
    found = waiting(
        aws, lanes_without_functions, narration=heard, min_clients=2, expect=5, deadline_s=0.2,
        on_deadline="extend", extend_s=20.0,
    )  # fmt: skip
    assert found == ["a", "b"]
    assert any("1 of 2 updates are in" in s and "(extension 1 of 3)" in s for s in heard.sentences)


def test_extensions_come_to_an_end(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    with pytest.raises(QuorumMissed, match="has no updates after its deadline of 0 s and 2 extensions of 0 s"):
        waiting(
            aws, lanes_without_functions, deadline_s=0.1, on_deadline="extend", extend_s=0.2, max_extensions=2
        )  # fmt: skip


def test_the_window_follows_from_the_record_alone() -> None:
    fields: dict[str, Any] = {"deadline_s": 60.0, "on_deadline": "extend", "extend_s": 30.0, "max_extensions": 2}
    window = Window(RoundRecord(RoundRequest("digits", "r-1", **fields), 1000.0))
    seen = [
        (window.extension(now), window.left(now)) for now in (1000.0, 1059.0, 1060.0, 1089.0, 1090.0, 1120.0, 1200.0)
    ]
    assert seen == [(0, 60), (0, 1), (1, 30), (1, 1), (2, 30), (2, 0), (2, -80)]
    assert [window.is_first(now) for now in (1059.9, 1060.0)] == [True, False]
    assert Window(RoundRecord(RoundRequest("digits", "r-1", deadline_s=60.0), 1000.0)).left(1061.0) == -1
