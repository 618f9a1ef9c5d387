"""What Terraform deployed: the `deployment` output of an environment, parsed once, here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lambdas.contract import MAX_SHARDS, Fields
from lambdas.errors import InvalidContract
from orchestrator import terraform
from orchestrator.errors import NotDeployed


@dataclass(frozen=True)
class Lane:
    """A queue, its dead-letter queue and a function sized for one shard count."""

    shards: int
    queue_url: str
    dead_letter_queue_url: str
    function_name: str
    memory_mb: int
    timeout_s: int
    architecture: str
    max_receive_count: int


@dataclass(frozen=True)
class Deployment:
    """One environment's bucket, result queue and lanes.

    Attributes:
        endpoint_url: the emulator's, None on AWS.
        lanes: by shard count, ascending.
    """

    environment: str
    region: str
    bucket: str
    endpoint_url: str | None
    result_queue_url: str
    lanes: Mapping[int, Lane]

    def lane(self, shards: int) -> Lane:
        """The lane for a shard count.

        Raises:
            NotDeployed: there is none; names those that exist and what to change.
        """
        if shards not in self.lanes:
            deployed = ", ".join(str(m) for m in self.lanes) or "none"
            raise NotDeployed(
                f"No lane for {shards} shards; deployed: {deployed}. "
                f"Add {shards} to shard_counts in environments/{self.environment} and deploy again."
            )
        return self.lanes[shards]


def parse_deployment(value: object) -> Deployment:
    """Parse the `deployment` output (infra/aggregator/outputs.tf).

    Raises:
        InvalidContract: it has another form than this release writes.
    """
    f = Fields("Terraform's output `deployment`", value)
    f.integer("schema", 1, 1)
    lanes = {}
    for lane in f.object("lanes").children():
        lanes[lane.integer("shards", 1, MAX_SHARDS)] = Lane(
            shards=lane.integer("shards", 1, MAX_SHARDS),
            queue_url=lane.text("queue_url"),
            dead_letter_queue_url=lane.text("dead_letter_queue_url"),
            function_name=lane.text("function_name"),
            memory_mb=lane.integer("memory_mb", 128, 10240),
            timeout_s=lane.integer("timeout_s", 1, 900),
            architecture=lane.choice("architecture", ("arm64", "x86_64")),
            max_receive_count=lane.integer("max_receive_count", 1, 1000),
        )
    return Deployment(
        environment=f.text("environment"),
        region=f.text("region"),
        bucket=f.text("bucket"),
        endpoint_url=f.optional_text("endpoint_url"),
        result_queue_url=f.text("result_queue_url"),
        lanes=dict(sorted(lanes.items())),
    )


def load_deployment(environment: str) -> Deployment:
    """The deployment of an environment, from its Terraform state.

    Raises:
        NotDeployed: there is no such environment, or nothing is deployed in it.
    """
    outputs: dict[str, Any] = terraform.outputs(environment)
    if "deployment" not in outputs:
        raise NotDeployed(
            f"Environment {environment} is not deployed. Run `orchestrator deploy --env {environment}` first"
            + (", with the emulator running (`orchestrator emulator start`)." if environment == "local" else ".")
        )
    try:
        return parse_deployment(outputs["deployment"]["value"])
    except InvalidContract as error:
        raise NotDeployed(f"{error} Deploy environment {environment} again with this release.") from error
