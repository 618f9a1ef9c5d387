"""What the command line reports, with its exit status. Statuses are documented in README.md and stable.

FederationError (lambdas/errors.py)                exit status 1
└── OrchestratorError                              1
    ├── BadInput        bad arguments or files     2
    ├── NotDeployed     environment or lane        3
    ├── QuorumMissed    deadline below quorum      4
    ├── RoundFailed     a bad update or shard      5
    ├── RoundConflict   already published, busy    6
    ├── PlanningError   nothing feasible           7
    ├── RoundAborted    the round was aborted      8
    └── VerificationFailed  a link does not hold   9
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdas.protocol.errors import FederationError


class OrchestratorError(FederationError):
    """Base of the command line's own errors."""

    exit_status = 1


class BadInput(OrchestratorError):
    """An argument or a file that cannot be used."""

    exit_status = 2


class NotDeployed(OrchestratorError):
    """The environment, or the lane that was asked for, is not deployed."""

    exit_status = 3


class QuorumMissed(OrchestratorError):
    """The deadline passed with fewer updates than the round's quorum."""

    exit_status = 4


class RoundFailed(OrchestratorError):
    """The round cannot publish: a bad update, or a shard whose every try failed."""

    exit_status = 5


class RoundConflict(OrchestratorError):
    """The round is already published, or its record says something else than the command."""

    exit_status = 6


class PlanningError(OrchestratorError):
    """No configuration can do what was asked, or the question makes no sense.

    Attributes:
        details: what was looked at, as `--output json` prints it beside the error; may be empty.
    """

    exit_status = 7

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


class RoundAborted(OrchestratorError):
    """The round was aborted: nothing of it is or will be published."""

    exit_status = 8


class VerificationFailed(OrchestratorError):
    """A link of a round's SHA-256 chain does not hold.

    Attributes:
        details: the whole result, as `orchestrator verify --output json` prints it.
    """

    exit_status = 9

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


# Documents record the kind of an error, which is the name of its class, so that another process can raise it again.
_KINDS: dict[str, type[OrchestratorError]] = {
    kind.__name__: kind
    for kind in (
        BadInput,
        NotDeployed,
        QuorumMissed,
        RoundFailed,
        RoundConflict,
        PlanningError,
        RoundAborted,
        VerificationFailed,
    )
}


def kind_of(error: FederationError) -> str:
    """The kind under which a document records an error: its class, or the base class that `error_from` knows."""
    names = [cls.__name__ for cls in type(error).__mro__]
    return next((name for name in names if name in _KINDS), names[0])


def error_from(kind: str, message: str) -> OrchestratorError:
    """The error that a document records; a plain OrchestratorError where the kind is not one of this module."""
    return _KINDS.get(kind, OrchestratorError)(message)
