"""Errors that one process records and another one raises."""

from __future__ import annotations

import pytest

from lambdas.protocol.errors import InvalidContract
from orchestrator import errors
from orchestrator.errors import OrchestratorError, RoundFailed, error_from, kind_of
from orchestrator.rounds.lease import LeaseLost
from orchestrator.rounds.wait import BadUpdate

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, OrchestratorError) and kind is not OrchestratorError
]


def test_the_command_lines_errors_are_eight() -> None:
    assert len(KINDS) == 8


@pytest.mark.parametrize("kind", [*KINDS, OrchestratorError])
def test_an_error_is_rebuilt_from_its_recorded_kind(kind: type[OrchestratorError]) -> None:
    rebuilt = error_from(kind_of(kind("the sentence")), "the sentence")
    assert type(rebuilt) is kind
    assert (str(rebuilt), rebuilt.exit_status) == ("the sentence", kind.exit_status)


def test_a_more_special_error_is_recorded_as_the_one_that_other_processes_know() -> None:
    assert kind_of(BadUpdate("x", None)) == RoundFailed.__name__


@pytest.mark.parametrize("kind", [kind_of(InvalidContract("x")), kind_of(LeaseLost("x")), "OfALaterRelease", ""])
def test_an_unknown_kind_is_a_general_error(kind: str) -> None:
    assert type(error_from(kind, "x")) is OrchestratorError
