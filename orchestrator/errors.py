"""The errors of the orchestrator, with the exit status of each on the command line. The statuses are stable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdas.protocol.errors import FederationError


class OrchestratorError(FederationError):
    """Base of the orchestrator's errors.

    Attributes:
        details: fields that `--output json` prints beside the error; may be empty.
    """

    exit_status = 1

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


class BadInput(OrchestratorError):
    """An argument or a file is not valid."""

    exit_status = 2


class NotDeployed(OrchestratorError):
    """The environment, or the lane for the round, is not deployed."""

    exit_status = 3


class QuorumMissed(OrchestratorError):
    """The round has fewer updates than its quorum at its deadline."""

    exit_status = 4


class RoundFailed(OrchestratorError):
    """The round cannot be published: an update is not valid, or all tries of a shard failed."""

    exit_status = 5


class RoundConflict(OrchestratorError):
    """The round is already published, or it was opened with other options; or the client submitted another update."""

    exit_status = 6


class PlanningError(OrchestratorError):
    """No configuration is feasible (`details`: those that were tried), or an argument is out of its range."""

    exit_status = 7


class RoundAborted(OrchestratorError):
    """The round was aborted and is not published."""

    exit_status = 8


class VerificationFailed(OrchestratorError):
    """A link of a round's SHA-256 chain does not hold; `details` are the result of the verification."""

    exit_status = 9


# Documents record the kind of an error, which is the name of its class, so that another process can raise it again.
# The kinds are the classes above. Subclasses in other modules are recorded as one of these.
_KINDS = {kind.__name__: kind for kind in OrchestratorError.__subclasses__()}


def kind_of(error: FederationError) -> str:
    """The kind under which a document records an error: its class, or the base class that `error_from` knows."""
    names = [cls.__name__ for cls in type(error).__mro__]
    return next((name for name in names if name in _KINDS), names[0])


def error_from(kind: str, message: str) -> OrchestratorError:
    """The error that a document records; an OrchestratorError if the kind is not in this module."""
    return _KINDS.get(kind, OrchestratorError)(message)
