"""The averaging of a round: one interface, implemented by shards (sharded.py) and by trees (tree.py)."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any, Protocol

from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import Job
from lambdas.protocol.topologies import GRADS_SHARDING, TREES
from lambdas.storage.bucket import Bucket
from orchestrator.aws.deployment import Deployment
from orchestrator.rounds.context import Attempt, Averaged
from orchestrator.rounds.pin import Pinned
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.sharded import ShardedAveraging
from orchestrator.rounds.tree import TreeAveraging


class Averaging(Protocol):
    """Everything about a round that depends on its topology. Implementations have no state: S3 holds the progress."""

    def check_lane(self, request: RoundRequest, deployment: Deployment) -> None:
        """Check that the lane is deployed, as far as the request alone determines the lane.

        Raises:
            NotDeployed: it is not; names the lanes that are deployed and the next step.
        """

    def choose_shards(self, request: RoundRequest, pinned: Pinned, deployment: Deployment) -> int:
        """The number of shards in which the model is averaged, 1 for a tree.

        Raises:
            NotDeployed: no lane is deployed for the topology.
            PlanningError, BadInput: no deployed lane can average the model.
        """

    def describe(self, manifest: RoundManifest) -> str:
        """The jobs of the round in words, such as `8 shards`."""

    def average(self, attempt: Attempt) -> Averaged:
        """Queue the jobs that are not done and wait until all averaged shards are stored.

        Returns early, without an error, when another coordinator has published the round, or when the round was
        aborted: `publish` determines which of the two it is.

        Raises:
            BadUpdate: an update cannot be averaged.
            RoundFailed: every try of a job failed, or no job was finished in `attempt.patience_s`.
        """

    def clean_up(self, bucket: Bucket, round_id: str) -> None:
        """Delete the intermediate objects of a published round that `publish` does not delete."""

    def progress(self, bucket: Bucket, manifest: RoundManifest, *, published: bool) -> dict[str, Any]:
        """Fields that `orchestrator status` shows for this topology only.

        Args:
            published: the global model is stored, so that no progress needs to be looked up.
        """

    def gave_up(self, dead: Iterable[Job], stored: Set[int]) -> list[Any]:
        """The jobs that failed on every try, as `orchestrator status` shows them: shards, or (level, aggregator).

        Args:
            dead: the round's jobs in the dead-letter queue.
            stored: the shards that S3 holds.
        """


_BY_TOPOLOGY: dict[str, Averaging] = {GRADS_SHARDING: ShardedAveraging(), **dict.fromkeys(TREES, TreeAveraging())}


def averaging_of(topology: str) -> Averaging:
    """The implementation for a topology."""
    return _BY_TOPOLOGY[topology]
