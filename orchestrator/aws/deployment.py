"""What Terraform deployed: the `deployment` output of an environment, parsed once, here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lambdas.protocol.documents import Fields
from lambdas.protocol.limits import MAX_SHARDS
from lambdas.protocol.topologies import GRADS_SHARDING, TREES
from orchestrator.errors import NotDeployed

# The default of infra/aggregator's variable.
DEFAULT_ROUND_RETENTION_DAYS = 7


@dataclass(frozen=True)
class Lane:
    """A queue, its dead-letter queue and a function sized for one shard count.

    Attributes:
        tree: the tree whose aggregators the function is sized for instead (it holds the whole model); None for shards.
        ephemeral_storage_mb: size of the function's /tmp, MB; by default the least that Lambda gives.
        maximum_concurrency: functions of the lane that run at once; by default the most of an event source mapping.
    """

    shards: int
    queue_url: str
    dead_letter_queue_url: str
    function_name: str
    memory_mb: int
    timeout_s: int
    cpu_architecture: str
    max_receive_count: int
    tree: str | None = None
    ephemeral_storage_mb: int = 512
    maximum_concurrency: int = 1000


@dataclass(frozen=True)
class Deployment:
    """One environment's bucket, result queue and lanes.

    Attributes:
        endpoint_url: the emulator's, None on AWS.
        lanes: by shard count, ascending.
        baselines: the lanes of lambda-FL and LIFL, by topology.
        baselines_refused: why a tree has no lane although baselines were asked for, by topology.
        round_retention_days: days after which the objects under rounds/ expire; infra's default where an older
            release deployed, whose output does not say.
    """

    environment: str
    region: str
    bucket: str
    endpoint_url: str | None
    result_queue_url: str
    lanes: Mapping[int, Lane]
    baselines: Mapping[str, Lane] = field(default_factory=dict)
    baselines_refused: Mapping[str, str] = field(default_factory=dict)
    round_retention_days: int = DEFAULT_ROUND_RETENTION_DAYS

    @property
    def all_lanes(self) -> list[Lane]:
        """Those for shards and those for trees."""
        return [*self.lanes.values(), *self.baselines.values()]

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

    def find_lane(self, topology: str, shards: int) -> Lane | None:
        """The lane for rounds of a topology, None where there is none."""
        return self.lanes.get(shards) if topology == GRADS_SHARDING else self.baselines.get(topology)

    def lane_for(self, topology: str, shards: int) -> Lane:
        """The lane for rounds of a topology; `shards` matters to grads-sharding only.

        Raises:
            NotDeployed: there is none; says why and what to change.
        """
        if topology == GRADS_SHARDING:
            return self.lane(shards)
        if topology not in self.baselines:
            raise NotDeployed(
                f"No lane for {topology}: "
                + (
                    self.baselines_refused.get(topology)
                    or f"set baselines = true in environments/{self.environment} and deploy again."
                )
            )
        return self.baselines[topology]


def parse_deployment(value: object) -> Deployment:
    """Parse the `deployment` output (infra/aggregator/outputs.tf).

    Raises:
        InvalidContract: it has another form than this release writes.
    """
    f = Fields("Terraform's output `deployment`", value)
    f.integer("schema", 1, 1)
    lanes = [_lane(lane) for lane in f.object("lanes").children()]
    baselines, refused = f.object("baselines"), f.object("baselines_refused")
    return Deployment(
        environment=f.text("environment"),
        region=f.text("region"),
        bucket=f.text("bucket"),
        endpoint_url=f.optional_text("endpoint_url"),
        result_queue_url=f.text("result_queue_url"),
        lanes={lane.shards: lane for lane in sorted(lanes, key=lambda lane: lane.shards)},
        baselines={name: _lane(baselines.object(name), name) for name in TREES if name in baselines},
        baselines_refused={name: refused.text(name) for name in TREES if name in refused},
        round_retention_days=f.optional_integer("round_retention_days", 1, 3650) or DEFAULT_ROUND_RETENTION_DAYS,
    )


def _lane(f: Fields, tree: str | None = None) -> Lane:
    return Lane(
        shards=f.integer("shards", 1, MAX_SHARDS),
        queue_url=f.text("queue_url"),
        dead_letter_queue_url=f.text("dead_letter_queue_url"),
        function_name=f.text("function_name"),
        memory_mb=f.integer("memory_mb", 128, 10240),
        timeout_s=f.integer("timeout_s", 1, 900),
        cpu_architecture=f.choice("cpu_architecture", ("arm64", "x86_64")),
        max_receive_count=f.integer("max_receive_count", 1, 1000),
        tree=tree,
        ephemeral_storage_mb=f.integer("ephemeral_storage_mb", 512, 10240),
        maximum_concurrency=f.integer("maximum_concurrency", 2, 1000),
    )
