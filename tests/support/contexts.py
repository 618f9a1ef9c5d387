"""The context of a round whose steps are tested one by one."""

from __future__ import annotations

from typing import Any

from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.progress import Narration
from orchestrator.rounds.context import RoundContext
from orchestrator.rounds.request import RoundRecord


class KeptLease:
    """A lease that nobody takes."""

    def check(self) -> None:
        pass


def context_of(
    aws: AwsClients, deployment: Deployment, record: RoundRecord, narration: Narration | None = None
) -> RoundContext:
    lease: Any = KeptLease()
    return RoundContext(aws, deployment, record, lease, narration or Narration())
