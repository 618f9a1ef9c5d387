"""Runs rounds of the same updates in several topologies, and compares time, cost and global models."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lambdas.protocol.keys import update_key
from lambdas.protocol.tensor_table import TensorSpec, TensorTable
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.s3 import delete_objects, list_objects
from orchestrator.client.fetch import fetch
from orchestrator.client.sources import Tensors
from orchestrator.client.submit import submit
from orchestrator.comparison.figures import figures, row
from orchestrator.comparison.ulps import compare_models
from orchestrator.errors import BadInput, NotDeployed
from orchestrator.planning.planner import choose_lane
from orchestrator.progress import Narration
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round

_BLOCK = 4 * 1024**2


@dataclass(frozen=True)
class ClientUpdate:
    """One client's update, which every topology averages."""

    client: str
    tensors: Tensors
    examples: int


def synthetic_updates(model_bytes: int, clients: int) -> list[ClientUpdate]:
    """Updates of one float32 tensor of random values, with uneven example counts; the same for the same arguments."""
    if model_bytes < 4 or clients < 1:
        raise BadInput("Synthetic updates need at least 4 bytes and 1 client. Raise --model-bytes or --clients.")
    table = TensorTable((TensorSpec("weight", "F32", (model_bytes // 4,)),))

    def values(client: int) -> Iterator[memoryview]:
        for block, start in enumerate(range(0, table.elements, _BLOCK)):
            generator = np.random.default_rng([client, block])
            yield generator.standard_normal(min(_BLOCK, table.elements - start), dtype=np.float32).data.cast("B")

    return [
        ClientUpdate(f"client-{c:05d}", Tensors(table, lambda _, c=c: values(c)), 1 + 37 * c % 1000)  # type: ignore[misc]
        for c in range(clients)
    ]


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        synthetic: whether the updates are synthetic, which the result records.
        shards: M of grads-sharding; None: the planner chooses a lane.
        repeats: rounds of each topology.
        keep: leave rounds and global models in the bucket.
    """

    updates: Sequence[ClientUpdate]
    synthetic: bool
    shards: int | None = None
    repeats: int = 1
    topologies: Sequence[str] = TOPOLOGIES
    keep: bool = False

    @property
    def model_bytes(self) -> int:
        """Bytes of one update's tensors."""
        return self.updates[0].tensors.table.nbytes


def compare(
    aws: AwsClients, deployment: Deployment, comparison: Comparison, narration: Narration | None = None
) -> dict[str, Any]:
    """Run rounds of the same updates in each topology in turn, and compare them.

    Returns:
        A JSON document: `rows`, one per topology, with medians over the repeats and the planner's prediction;
        `differences` of the global models from the first one's; `infeasible`, the topologies without a lane, with
        reasons.

    Raises:
        The errors of `orchestrator.rounds.start.start_round`.
    """
    narration = narration or Narration()
    shards = comparison.shards
    if shards is None:
        lanes = list(deployment.lanes.values())
        shards = choose_lane(comparison.model_bytes, len(comparison.updates), lanes).shards
    feasible, infeasible = _feasible(deployment, comparison.topologies, shards)
    for reason in infeasible.values():
        narration.say(reason)
    series = _Series(aws, deployment, comparison, shards)
    try:
        for repeat in range(comparison.repeats):
            for topology in feasible:
                narration.say(
                    f"{topology}, run {repeat + 1} of {comparison.repeats}: {len(comparison.updates)} updates ..."
                )
                series.run(topology, repeat, narration)
        differences = _differences(series.bucket, series.name, series.first_round)
    finally:
        if not comparison.keep:
            series.delete()
    model_bytes, clients = comparison.model_bytes, len(comparison.updates)
    return {
        "environment": deployment.environment,
        "emulator": deployment.endpoint_url,
        "synthetic_updates": comparison.synthetic,
        "model_bytes": model_bytes,
        "clients": clients,
        "repeats": comparison.repeats,
        "rows": [row(topology, found, model_bytes, clients) for topology, found in series.runs.items()],
        "differences": differences,
        "infeasible": infeasible,
    }


def _feasible(deployment: Deployment, topologies: Sequence[str], shards: int) -> tuple[list[str], dict[str, str]]:
    """The topologies that have a lane, and the others with reasons."""
    feasible: list[str] = []
    infeasible: dict[str, str] = {}
    for topology in topologies:
        try:
            deployment.lane_for(topology, shards)
            feasible.append(topology)
        except NotDeployed as error:
            infeasible[topology] = str(error)
    return feasible, infeasible


class _Series:
    """Rounds of the same updates.

    Attributes:
        name: the model's name, with which the ids of the rounds begin.
        runs: the figures of each round, by topology.
        first_round: id of the first round of each topology.
    """

    def __init__(self, aws: AwsClients, deployment: Deployment, comparison: Comparison, shards: int) -> None:
        self._aws, self._deployment, self._comparison, self._shards = aws, deployment, comparison, shards
        self.bucket = aws.bucket(deployment.bucket)
        self.name = f"compare-{time.time_ns() // 1_000_000}"
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.first_round: dict[str, str] = {}

    def run(self, topology: str, repeat: int, narration: Narration) -> None:
        """Submit the updates and run a round."""
        round_id = f"{self.name}-{topology}-{repeat}"
        self._submit(round_id)
        self.first_round.setdefault(topology, round_id)
        request = RoundRequest(
            model=self.name,
            round_id=round_id,
            min_clients=len(self._comparison.updates),
            topology=topology,
            shards=self._shards if topology == GRADS_SHARDING else None,
        )
        report = start_round(self._aws, self._deployment, request, narration).document
        on_aws = self._deployment.endpoint_url is None
        self.runs.setdefault(topology, []).append(figures(dict(report), on_aws))

    def _submit(self, round_id: str) -> None:
        """Upload the updates for the first round, and copy them in S3 for the others."""
        source_round = next(iter(self.first_round.values()), None)
        for update in self._comparison.updates:
            if source_round is None:
                submit(self.bucket, round_id, update.client, update.tensors, update.examples)
                continue
            source: Any = {"Bucket": self.bucket.name, "Key": update_key(source_round, update.client)}
            self.bucket.s3.copy(source, self.bucket.name, update_key(round_id, update.client))

    def delete(self) -> None:
        """Delete the rounds and the global models."""
        for prefix in (f"rounds/{self.name}-", f"models/{self.name}/"):
            delete_objects(self.bucket, [item["Key"] for item in list_objects(self.bucket, prefix)])


def _differences(bucket: Bucket, model: str, rounds: dict[str, str]) -> list[dict[str, Any]]:
    """How the global models of the other topologies differ from the first one's."""
    found = []
    with tempfile.TemporaryDirectory(prefix="compare-") as directory:
        paths = {topology: Path(directory) / f"{topology}.safetensors" for topology in rounds}
        for topology, round_id in rounds.items():
            fetch(bucket, model, paths[topology], round_id=round_id)
        for topology in list(paths)[1:]:
            base = next(iter(paths))
            difference = compare_models(paths[base], paths[topology])
            found.append({"topologies": [base, topology], **asdict(difference)})
    return found
