"""The errors of the orchestrator, with the exit status of each on the command line. The statuses are stable.

FederationError (lambdas/protocol/errors.py)                           exit status 1
└── OrchestratorError       any other failure                          1
    ├── BadInput            an invalid argument or file                2
    ├── NotDeployed         the environment or lane is not deployed    3
    ├── QuorumMissed        too few updates at the deadline            4
    ├── RoundFailed         an invalid update, or a shard that failed  5
    ├── RoundConflict       already published, or other options        6
    ├── PlanningError       no feasible configuration                  7
    ├── RoundAborted        the round was aborted                      8
    └── VerificationFailed  a link of the SHA-256 chain is broken      9
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdas.protocol.errors import FederationError


class OrchestratorError(FederationError):
    """Base of the orchestrator's errors."""

    exit_status = 1


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
    """No configuration is feasible, or an argument of the planner is out of its range.

    Attributes:
        details: the configurations that were tried, which `--output json` prints with the error; may be empty.
    """

    exit_status = 7

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


class RoundAborted(OrchestratorError):
    """The round was aborted and is not published."""

    exit_status = 8


class VerificationFailed(OrchestratorError):
    """A link of a round's SHA-256 chain does not hold.

    Attributes:
        details: the result of the verification, which `orchestrator verify --output json` prints with the error.
    """

    exit_status = 9

    def __init__(self, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.details = details
