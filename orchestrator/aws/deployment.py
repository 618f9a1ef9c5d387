"""The `deployment` output of an environment, parsed and written. Only this module knows the form of the output."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, TypedDict
from urllib.parse import urlsplit

from lambdas.protocol.documents import build
from lambdas.protocol.fields import Rule, ShardCount, integer, one_of
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES, TREES
from orchestrator.errors import NotDeployed

_SCHEMA = 1


def _is_endpoint(value: object) -> bool:
    """Whether boto3 takes a value as an endpoint; it would raise ValueError later."""
    from botocore.utils import is_valid_endpoint_url

    try:
        if not isinstance(value, str) or urlsplit(value).port == 0:
            return False
        return urlsplit(value).scheme in ("http", "https") and is_valid_endpoint_url(value)
    except ValueError:
        return False


_ENDPOINT = Rule(_is_endpoint, "an http or https URL such as http://127.0.0.1:4566")
_REGION = Rule(lambda v: isinstance(v, str) and re.fullmatch(r"[a-z0-9-]{1,32}", v) is not None, "an AWS region")


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
    region: Annotated[str, _REGION]
    bucket: str
    endpoint_url: Annotated[str, _ENDPOINT] | None
    result_queue_url: str
    lanes: Mapping[int, Lane]
    baselines: Mapping[str, Lane] = field(default_factory=dict)
    baselines_refused: Mapping[str, str] = field(default_factory=dict)
    round_retention_days: Annotated[int, integer(1, 3650)] = 7

    def to_json(self) -> str:
        """The deployment in the form of Terraform's output, which `parse_deployment` reads."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=2)

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
    schema: Annotated[int, integer(1, _SCHEMA)]


def parse_deployment(value: object, what: str = "Terraform's output `deployment`") -> Deployment:
    """Parse the `deployment` output of infra/aggregator.

    Args:
        what: the document's name in error messages.

    Raises:
        InvalidContract: the output has another form than this release writes.
    """
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
