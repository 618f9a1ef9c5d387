"""Flower's own server loop and client apps in one process; weights through S3, averages by workers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from lambdas.protocol.errors import FederationError
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import BadInput
from orchestrator.flower import Participation, ShardedFedAvg

INITIAL = {"weight": torch.linspace(-1, 1, 24).reshape(4, 6), "steps": torch.tensor(3, dtype=torch.int64)}
EXAMPLES = {11: 5, 12: 1, 13: 17}


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower sets in the process of a server app, for its messages."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


class LocalGrid(Grid):
    """Nodes that answer in this process."""

    def __init__(self, app: ClientApp, nodes: Iterable[int]) -> None:
        self.app = app
        self.nodes = list(nodes)
        self.sent: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            self.sent.append(message)
            node = message.metadata.dst_node_id
            replies.append(self.app(message, Context(1, node, {}, RecordDict(), {})))
        return replies

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError


def trained(state: dict[str, torch.Tensor], node: int) -> dict[str, torch.Tensor]:
    state = copy.deepcopy(state)
    state["weight"] += node / 7
    state["steps"] += node
    return state


def client_app(poisoned: int | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        part = Participation.of(message)
        state = trained(part.pull(), context.node_id)
        if context.node_id == poisoned:
            state["weight"][0, 0] = float("nan")
        part.push(state, EXAMPLES[context.node_id])
        metrics = MetricRecord({"num-examples": EXAMPLES[context.node_id], "loss": float(context.node_id)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        state = Participation.of(message).pull()
        metrics = MetricRecord({"num-examples": 1, "sum": float(state["weight"].double().sum())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def average(states: dict[int, dict[str, torch.Tensor]]) -> dict[str, np.ndarray[Any, Any]]:
    total = sum(EXAMPLES[node] for node in states)
    weight = sum(EXAMPLES[n] * states[n]["weight"].numpy().astype(np.float64) for n in sorted(states)) / total
    steps = sum(EXAMPLES[n] * float(states[n]["steps"]) for n in sorted(states)) / total
    return {"weight": np.asarray(weight, np.float32), "steps": np.asarray(np.rint(steps), np.int64)}


def strategy(deployment: Deployment, run: str, **options: Any) -> ShardedFedAvg:
    return ShardedFedAvg(model="net", run=run, deployment=deployment, shards=2, **options)


def test_flower_rounds_are_averaged_by_the_kit_and_no_weights_pass_through_flower(worked_lanes: Deployment) -> None:
    grid = LocalGrid(client_app(), EXAMPLES)
    result = strategy(worked_lanes, "run").start(grid=grid, initial_arrays=ArrayRecord(INITIAL), num_rounds=2)

    expected: dict[str, Any] = INITIAL
    for _ in range(2):
        expected = {k: torch.from_numpy(v) for k, v in average({n: trained(expected, n) for n in EXAMPLES}).items()}
    for name, array in result.arrays.items():
        np.testing.assert_array_equal(array.numpy(), expected[name].numpy())
    assert result.train_metrics_clientapp[2]["loss"] == pytest.approx((11 * 5 + 12 + 13 * 17) / 23)
    assert result.evaluate_metrics_clientapp[2]["sum"] == pytest.approx(float(expected["weight"].double().sum()))
    assert all(not record for message in grid.sent for record in message.content.array_records.values())


def test_the_update_of_a_poisoned_node_never_gets_into_the_average(worked_lanes: Deployment) -> None:
    grid = LocalGrid(client_app(poisoned=12), EXAMPLES)
    with pytest.raises(FederationError, match="NaN"):
        strategy(worked_lanes, "failing").start(grid=grid, initial_arrays=ArrayRecord(INITIAL), num_rounds=1)


def test_without_arrays_the_server_holds_no_model(worked_lanes: Deployment) -> None:
    grid = LocalGrid(client_app(), EXAMPLES)
    result = strategy(worked_lanes, "light", keep_arrays=False, fraction_evaluate=0.0).start(
        grid=grid, initial_arrays=ArrayRecord(INITIAL), num_rounds=1
    )
    assert not result.arrays
    assert list(result.train_metrics_clientapp) == [1]


def test_a_first_round_needs_something_to_start_from(worked_lanes: Deployment) -> None:
    with pytest.raises(BadInput, match="Pass the initial_arrays"):
        strategy(worked_lanes, "empty").start(
            grid=LocalGrid(client_app(), EXAMPLES), initial_arrays=ArrayRecord(), num_rounds=1
        )
