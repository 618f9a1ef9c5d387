"""A round of seven clients that a tree of aggregators averages."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round
from orchestrator.workers import poll
from tests.support.rounds import put, weights

COUNTS = [120, 7, 1, 3001, 64, 12, 5]
UPDATES = {f"c-{i}": (weights(i), count) for i, count in enumerate(COUNTS)}


def submit_all(aws: AwsClients, deployment: Deployment, round_id: str = "r-1") -> None:
    for client, (values, count) in UPDATES.items():
        put(aws, deployment, client, values, count, round_id)


@contextlib.contextmanager
def aggregating(aws: AwsClients, deployment: Deployment, tree: str) -> Iterator[None]:
    """Run a worker on the lane of a tree during the block."""

    def serve() -> None:
        with contextlib.suppress(Exception):
            poll.work(aws, deployment, [deployment.baselines[tree]], idle_exit_s=3)

    threading.Thread(target=serve, daemon=True).start()
    yield


def run(aws: AwsClients, deployment: Deployment, tree: str, round_id: str = "r-1") -> Any:
    request = RoundRequest("digits", round_id, min_clients=len(COUNTS), topology=tree)
    with aggregating(aws, deployment, tree):
        return start_round(aws, deployment, request).document
