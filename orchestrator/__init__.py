"""Serverless federated aggregation by gradient sharding: the public Python API.

    from orchestrator import Client

    client = Client("hospital-7", model="digits", env="local")
    client.push(net.state_dict(), num_examples=1203, round_id="r-0001")
    net.load_state_dict(client.pull())

The names in `__all__` are public. The module of a name is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lambdas.protocol.errors import FederationError, InvalidName, InvalidUpdate, TensorTableMismatch
    from orchestrator.aws.clients import AwsClients, connect
    from orchestrator.aws.deployment import Deployment
    from orchestrator.client.api import Client
    from orchestrator.client.fetch import Fetched, fetch
    from orchestrator.client.sources import Tensors, from_file, from_state_dict
    from orchestrator.client.submit import Submitted, submit
    from orchestrator.deployment.file import load_deployment_file
    from orchestrator.deployment.load import load_deployment
    from orchestrator.errors import (
        BadInput,
        NotDeployed,
        OrchestratorError,
        PlanningError,
        QuorumMissed,
        RoundAborted,
        RoundConflict,
        RoundFailed,
        VerificationFailed,
    )
    from orchestrator.planning.plan import Plan
    from orchestrator.planning.planner import plan_round, predict
    from orchestrator.progress import Narration, StderrNarration
    from orchestrator.rounds.abort import abort_round
    from orchestrator.rounds.report import Report
    from orchestrator.rounds.request import RoundRequest
    from orchestrator.rounds.start import resume_round, start_round
    from orchestrator.rounds.status import list_rounds, read_report, round_status
    from orchestrator.verification.result import Verification
    from orchestrator.verification.verify import verify

_MODULES = {
    "lambdas.protocol.errors": ("FederationError", "InvalidName", "InvalidUpdate", "TensorTableMismatch"),
    "orchestrator.aws.clients": ("AwsClients", "connect"),
    "orchestrator.aws.deployment": ("Deployment",),
    "orchestrator.client.api": ("Client",),
    "orchestrator.client.fetch": ("Fetched", "fetch"),
    "orchestrator.client.sources": ("Tensors", "from_file", "from_state_dict"),
    "orchestrator.client.submit": ("Submitted", "submit"),
    "orchestrator.deployment.file": ("load_deployment_file",),
    "orchestrator.deployment.load": ("load_deployment",),
    "orchestrator.errors": (
        "BadInput",
        "NotDeployed",
        "OrchestratorError",
        "PlanningError",
        "QuorumMissed",
        "RoundAborted",
        "RoundConflict",
        "RoundFailed",
        "VerificationFailed",
    ),
    "orchestrator.planning.plan": ("Plan",),
    "orchestrator.planning.planner": ("plan_round", "predict"),
    "orchestrator.progress": ("Narration", "StderrNarration"),
    "orchestrator.rounds.abort": ("abort_round",),
    "orchestrator.rounds.report": ("Report",),
    "orchestrator.rounds.request": ("RoundRequest",),
    "orchestrator.rounds.start": ("resume_round", "start_round"),
    "orchestrator.rounds.status": ("list_rounds", "read_report", "round_status"),
    "orchestrator.verification.result": ("Verification",),
    "orchestrator.verification.verify": ("verify",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AwsClients",
    "BadInput",
    "Client",
    "Deployment",
    "FederationError",
    "Fetched",
    "InvalidName",
    "InvalidUpdate",
    "Narration",
    "NotDeployed",
    "OrchestratorError",
    "Plan",
    "PlanningError",
    "QuorumMissed",
    "Report",
    "RoundAborted",
    "RoundConflict",
    "RoundFailed",
    "RoundRequest",
    "StderrNarration",
    "Submitted",
    "TensorTableMismatch",
    "Tensors",
    "Verification",
    "VerificationFailed",
    "abort_round",
    "connect",
    "fetch",
    "from_file",
    "from_state_dict",
    "list_rounds",
    "load_deployment",
    "load_deployment_file",
    "plan_round",
    "predict",
    "read_report",
    "resume_round",
    "round_status",
    "start_round",
    "submit",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, and the modules that are loaded."""
    return sorted({*globals(), *__all__})
