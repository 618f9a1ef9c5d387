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

# What type checkers see, where "as" marks a re-export. A test compares these imports with _NAMES.
# isort: off
if TYPE_CHECKING:
    from lambdas.protocol.errors import (
        FederationError as FederationError,
        InvalidName as InvalidName,
        InvalidUpdate as InvalidUpdate,
        TensorTableMismatch as TensorTableMismatch,
    )
    from orchestrator.aws.clients import AwsClients as AwsClients, connect as connect
    from orchestrator.aws.deployment import Deployment as Deployment
    from orchestrator.client.api import Client as Client
    from orchestrator.client.fetch import Fetched as Fetched, fetch as fetch
    from orchestrator.client.sources import (
        Tensors as Tensors,
        from_file as from_file,
        from_state_dict as from_state_dict,
    )
    from orchestrator.client.submit import Submitted as Submitted, submit as submit
    from orchestrator.deployment.file import load_deployment_file as load_deployment_file
    from orchestrator.deployment.load import load_deployment as load_deployment
    from orchestrator.errors import (
        BadInput as BadInput,
        NotDeployed as NotDeployed,
        OrchestratorError as OrchestratorError,
        PlanningError as PlanningError,
        QuorumMissed as QuorumMissed,
        RoundAborted as RoundAborted,
        RoundConflict as RoundConflict,
        RoundFailed as RoundFailed,
        VerificationFailed as VerificationFailed,
    )
    from orchestrator.planning.plan import Plan as Plan
    from orchestrator.planning.planner import plan_round as plan_round, predict as predict
    from orchestrator.progress import Narration as Narration, StderrNarration as StderrNarration
    from orchestrator.rounds.abort import abort_round as abort_round
    from orchestrator.rounds.report import Report as Report
    from orchestrator.rounds.request import RoundRequest as RoundRequest
    from orchestrator.rounds.start import resume_round as resume_round, start_round as start_round
    from orchestrator.rounds.status import (
        list_rounds as list_rounds,
        read_report as read_report,
        round_status as round_status,
    )
    from orchestrator.verification.result import Verification as Verification
    from orchestrator.verification.verify import verify as verify

_NAMES = {
    "lambdas.protocol.errors": "FederationError InvalidName InvalidUpdate TensorTableMismatch",
    "orchestrator.aws.clients": "AwsClients connect",
    "orchestrator.aws.deployment": "Deployment",
    "orchestrator.client.api": "Client",
    "orchestrator.client.fetch": "Fetched fetch",
    "orchestrator.client.sources": "Tensors from_file from_state_dict",
    "orchestrator.client.submit": "Submitted submit",
    "orchestrator.deployment.file": "load_deployment_file",
    "orchestrator.deployment.load": "load_deployment",
    "orchestrator.errors": """
        BadInput NotDeployed OrchestratorError PlanningError QuorumMissed RoundAborted RoundConflict RoundFailed
        VerificationFailed""",
    "orchestrator.planning.plan": "Plan",
    "orchestrator.planning.planner": "plan_round predict",
    "orchestrator.progress": "Narration StderrNarration",
    "orchestrator.rounds.abort": "abort_round",
    "orchestrator.rounds.report": "Report",
    "orchestrator.rounds.request": "RoundRequest",
    "orchestrator.rounds.start": "resume_round start_round",
    "orchestrator.rounds.status": "list_rounds read_report round_status",
    "orchestrator.verification.result": "Verification",
    "orchestrator.verification.verify": "verify",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


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
