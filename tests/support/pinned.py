"""A round of two clients and two shards: pinned, queued, averaged."""

from __future__ import annotations

from lambdas.protocol.manifest import RoundManifest
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.rounds.manifest import freeze_round
from orchestrator.rounds.pin import list_updates, pin_updates
from orchestrator.rounds.queues import queue_jobs
from orchestrator.rounds.request import RoundRecord, RoundRequest
from tests.support.rounds import expected_file, put, weights, work_off

SHARDS = 2


def frozen(
    aws: AwsClients,
    deployment: Deployment,
    shape: tuple[int, int] = (3, 5),
    round_id: str = "r-1",
    opened: float = 1.0,
) -> RoundManifest:
    """A round of two clients and two shards, pinned."""
    for client, examples in (("a", 3), ("b", 1)):
        put(aws, deployment, client, weights(ord(client), shape), examples, round_id)
    updates = list_updates(aws.bucket(deployment.bucket), round_id)
    pinned = pin_updates(aws.bucket(deployment.bucket), RoundRequest("digits", round_id), updates)
    return freeze_round(
        aws.bucket(deployment.bucket), RoundRecord(RoundRequest("digits", round_id), opened), pinned, SHARDS
    )


def expected(shape: tuple[int, int] = (3, 5)) -> bytes:
    return expected_file({"a": (weights(ord("a"), shape), 3), "b": (weights(ord("b"), shape), 1)})


def queue(aws: AwsClients, deployment: Deployment, manifest: RoundManifest, *shards: int) -> None:
    queue_jobs(aws, deployment.lane(SHARDS).queue_url, manifest, shards or range(SHARDS), attempt=0)


def averaged(
    aws: AwsClients, deployment: Deployment, shape: tuple[int, int] = (3, 5), round_id: str = "r-1"
) -> RoundManifest:
    """A pinned round all of whose shards are stored, before it is published."""
    manifest = frozen(aws, deployment, shape, round_id)
    queue(aws, deployment, manifest)
    work_off(aws, deployment, SHARDS)
    return manifest
