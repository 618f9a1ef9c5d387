"""The `deployment` output of an environment, parsed. Only this module knows the form of the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, TypedDict

from lambdas.protocol.documents import build
from lambdas.protocol.fields import ShardCount, integer, one_of
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES, TREES
from orchestrator.errors import NotDeployed


@dataclass(frozen=True)
class Lane:
    """A queue, its dead-letter queue and a function sized for one shard count.

    Attributes:
        topology: what the function averages: shards, or the complete model as an aggregator of a tree.
        ephemeral_storage_mb: size of the function's /tmp, MB; by default Lambda's minimum.
        maximum_concurrency: functions of the lane that run at once; by default the maximum of an event source mapping.
    """

    shards: ShardCount
    queue_url: str
    dead_letter_queue_url: str
    function_name: str
    memory_mb: Annotated[int, integer(128, 10240)]
    timeout_s: Annotated[int, integer(1, 900)]
    cpu_architecture: Annotated[str, one_of(("arm64", "x86_64"))]
    max_receive_count: Annotated[int, integer(1, 1000)]
    topology: Annotated[str, one_of(TOPOLOGIES)] = GRADS_SHARDING
    ephemeral_storage_mb: Annotated[int, integer(512, 10240)] = 512
    maximum_concurrency: Annotated[int, integer(2, 1000)] = 1000


@dataclass(frozen=True)
class Deployment:
    """One environment's bucket, result queue and lanes.

    Attributes:
        endpoint_url: the emulator's, None on AWS.
        lanes: the lanes for shards, by shard count, ascending.
        baselines: the lanes of lambda-FL and LIFL, by topology.
        baselines_refused: by topology, why a tree has no lane in an environment with baselines.
        round_retention_days: days after which the objects under rounds/ expire.
    """

    environment: str
    region: str
    bucket: str
    endpoint_url: str | None
    result_queue_url: str
    lanes: Mapping[int, Lane]
    baselines: Mapping[str, Lane] = field(default_factory=dict)
    baselines_refused: Mapping[str, str] = field(default_factory=dict)
    round_retention_days: Annotated[int, integer(1, 3650)] = 7

    @property
    def all_lanes(self) -> list[Lane]:
        """The lanes for shards and those for trees."""
        return [*self.lanes.values(), *self.baselines.values()]

    def lane(self, shards: int) -> Lane:
        """The lane for a shard count; see `lane_for`."""
        return self.lane_for(GRADS_SHARDING, shards)

    def find_lane(self, topology: str, shards: int) -> Lane | None:
        """The lane for rounds of a topology, None if there is none."""
        return self.lanes.get(shards) if topology == GRADS_SHARDING else self.baselines.get(topology)

    def lane_for(self, topology: str, shards: int) -> Lane:
        """The lane for rounds of a topology; only grads-sharding uses `shards`.

        Raises:
            NotDeployed: there is none; names the reason, or the deployed lanes, and what to change.
        """
        lane = self.find_lane(topology, shards)
        if lane is not None:
            return lane
        directory = f"environments/{self.environment}"
        if topology == GRADS_SHARDING:
            raise NotDeployed(
                f"No lane for {shards} shards; deployed: {', '.join(map(str, self.lanes)) or 'none'}. "
                f"Add {shards} to shard_counts in {directory} and deploy again."
            )
        enable = f"set baselines = true in {directory} and deploy again."
        raise NotDeployed(f"No lane for {topology}: {self.baselines_refused.get(topology) or enable}")


class _Schema(TypedDict):
    schema: Annotated[int, integer(1, 1)]


def parse_deployment(value: object) -> Deployment:
    """Parse the `deployment` output of infra/aggregator.

    Raises:
        InvalidContract: the output has another form than this release writes.
    """
    what = "Terraform's output `deployment`"
    build(what, _Schema, value)
    found = build(what, Deployment, value)
    # Terraform's maps have strings as keys.
    lanes = sorted(found.lanes.values(), key=lambda lane: lane.shards)
    return replace(
        found,
        lanes={lane.shards: lane for lane in lanes},
        baselines={name: found.baselines[name] for name in TREES if name in found.baselines},
        baselines_refused={name: found.baselines_refused[name] for name in TREES if name in found.baselines_refused},
    )
