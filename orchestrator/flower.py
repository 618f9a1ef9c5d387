"""A Flower strategy: Flower samples and instructs the nodes, the weights go to S3, and functions average them.

A node gets an invitation with each message. It needs no AWS credentials, and no weights pass through Flower. The server
app needs the memory of at most one model (with `keep_arrays=False`, of none), whatever the number of nodes.

Server app:

    strategy = ShardedFedAvg(model="digits", run="digits-7", env="dev")
    strategy.start(grid=grid, initial_arrays=ArrayRecord(Net().state_dict()), num_rounds=5)

Client app:

    @app.train()
    def train(message: Message, context: Context) -> Message:
        part = Participation.of(message)
        net.load_state_dict(part.pull())
        ...
        part.push(net.state_dict(), num_examples)
        metrics = MetricRecord({"num-examples": num_examples, "loss": loss})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from lambdas.protocol.keys import check_name
from orchestrator.aws.clients import connect
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.models import latest_model
from orchestrator.client.api import Client, load_tensors
from orchestrator.client.fetch import store
from orchestrator.client.invite import invite, prepare
from orchestrator.client.presigned import refusal, stream
from orchestrator.client.submit import Submitted
from orchestrator.deployment.file import resolve_deployment
from orchestrator.deployment.load import load_deployment
from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round

# The record of a message that has what a node needs.
_RECORD = "fedagg"
_INITIAL = "initial"
_CHUNK = 1024**2


def client_name(node_id: int) -> str:
    """The client id of a Flower node."""
    return f"node-{node_id}"


class ShardedFedAvg(FedAvg):
    """Federated averaging in which the functions of an environment average the updates.

    The rounds are called `<run>-0001`, `<run>-0002`, ... A model without a global model starts from the initial arrays,
    which are published as `<run>-0000`. Otherwise it continues from its newest global model.

    Args:
        run: a unique name of this run, with which the ids of its rounds begin.
        env: the environment, a directory of environments/.
        deployment: the deployment to use instead of that of `env`, or the path of a deployment file.
        shards: None: the planner chooses a deployed lane.
        on_invalid: `fail`: an update that cannot be averaged fails the round; `exclude`: its node is excluded.
        invitation_s: the longest time from a node's instruction to its update, seconds.
        keep_arrays: return each global model to Flower, for `evaluate_fn` and the result.
        fedavg: arguments of Flower's FedAvg.

    Raises:
        InvalidName: `model` or `run` cannot be part of a key.
        NotDeployed: the environment is not deployed.
    """

    def __init__(
        self,
        *,
        model: str,
        run: str,
        env: str = "local",
        deployment: Deployment | str | Path | None = None,
        shards: int | None = None,
        on_invalid: str = "fail",
        invitation_s: float = 3600.0,
        keep_arrays: bool = True,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.model = check_name("model", model)
        self.run = check_name("run", run)
        self.shards = shards
        self.on_invalid = on_invalid
        self.invitation_s = invitation_s
        self.keep_arrays = keep_arrays
        self._deployment = load_deployment(env) if deployment is None else resolve_deployment(deployment)
        self._aws = connect(self._deployment.region, self._deployment.endpoint_url)
        self._bucket = self._aws.bucket(self._deployment.bucket)
        self._client = Client(_INITIAL, model=self.model, deployment=self._deployment)

    def round_id(self, server_round: int) -> str:
        """The id of the round for a Flower server round."""
        return f"{self.run}-{server_round:04d}"

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Instruct the sampled nodes: each message has an invitation instead of the weights."""
        if latest_model(self._bucket, self.model) is None:
            self._publish_initial(arrays)
        instructed = list(super().configure_train(server_round, ArrayRecord(), config, grid))
        if not instructed:
            return []
        inviting = prepare(self._bucket, self.round_id(server_round), model=self.model)
        return [
            self._with_record(
                message,
                inviting.round_id,
                invitation=invite(self._bucket, inviting, _client_of(message), self.invitation_s).to_json(),
            )
            for message in instructed
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the updates of the nodes that replied; the arrays are the new global model.

        Raises:
            RoundFailed, QuorumMissed: see `orchestrator.rounds.start.start_round`.
            BadInput: a reply has no example count.
        """
        replied, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not replied:
            return None, None
        for message in replied:
            self._check_metrics(message)
        start_round(
            self._aws,
            self._deployment,
            RoundRequest(
                model=self.model,
                round_id=self.round_id(server_round),
                shards=self.shards,
                min_clients=len(replied) if self.on_invalid == "fail" else 1,
                # A node that submitted an update and failed before its reply has failed for Flower, too.
                expect_clients=tuple(client_name(message.metadata.src_node_id) for message in replied),
                on_invalid=self.on_invalid,
            ),
        )
        metrics = self.train_metrics_aggr_fn([message.content for message in replied], self.weighted_by_key)
        return ArrayRecord(self._client.pull()) if self.keep_arrays else None, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Instruct the sampled nodes to evaluate the newest global model."""
        latest = latest_model(self._bucket, self.model)
        if latest is None:
            return []
        url = self._aws.s3.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._bucket.name, "Key": latest.key},
            ExpiresIn=int(self.invitation_s),
        )
        instructed = super().configure_evaluate(server_round, ArrayRecord(), config, grid)
        return [self._with_record(message, latest.round_id, model_url=url) for message in instructed]

    def _publish_initial(self, arrays: ArrayRecord) -> None:
        if not arrays:
            raise BadInput(f"Model {self.model} has no global model yet. Pass the initial_arrays to start from.")
        # The average of one update is that update, bit by bit.
        round_id = self.round_id(0)
        self._client.push({name: array.numpy() for name, array in arrays.items()}, 1, round_id=round_id)
        start_round(self._aws, self._deployment, RoundRequest(self.model, round_id, shards=self.shards))

    def _check_metrics(self, message: Message) -> None:
        records = list(message.content.metric_records.values())
        if len(records) != 1 or self.weighted_by_key not in records[0]:
            raise BadInput(
                f"Node {message.metadata.src_node_id} replied with {len(records)} MetricRecords; expected one with "
                f"{self.weighted_by_key!r}. Reply as in the example of orchestrator.flower."
            )

    def _with_record(self, message: Message, round_id: str, **values: str) -> Message:
        """A copy of the message with the record that a node needs."""
        record = ConfigRecord({"model": self.model, "round": round_id, "client": _client_of(message), **values})
        return Message(
            RecordDict({**message.content, _RECORD: record}),
            message_type=message.metadata.message_type,
            dst_node_id=message.metadata.dst_node_id,
        )


def _client_of(message: Message) -> str:
    return client_name(message.metadata.dst_node_id)


class Participation:
    """A node's part in a round, as described by the server app's message.

    Attributes:
        round_id: the round to train in, or the round whose global model is evaluated.
    """

    def __init__(self, record: ConfigRecord) -> None:
        self.model = str(record["model"])
        self.round_id = str(record["round"])
        self._client = Client(str(record["client"]), model=self.model)
        self._invitation = str(record["invitation"]) if "invitation" in record else None
        self._model_url = str(record.get("model_url", ""))

    @classmethod
    def of(cls, message: Message) -> Participation:
        """Parse a message of `ShardedFedAvg`.

        Raises:
            BadInput: the message is from another strategy.
        """
        record = message.content.config_records.get(_RECORD)
        if record is None:
            raise BadInput(f"The message has no {_RECORD!r} record. Run the server app with ShardedFedAvg.")
        return cls(record)

    def pull(self) -> dict[str, Any]:
        """The global model to train from, or to evaluate: name to torch.Tensor on the CPU.

        Raises:
            UnusableInvitation, OrchestratorError: see `orchestrator.client.redeem.fetch_invited`.
        """
        if self._invitation is not None:
            return self._client.pull(invite=self._invitation)
        with stream("GET", self._model_url) as response, tempfile.TemporaryDirectory(prefix="fedagg-") as directory:
            if response.status != 200:
                raise OrchestratorError(
                    f"The global model of round {self.round_id} could not be fetched: S3 answered {response.status} "
                    f"{refusal(response).code}. Give the nodes more time: a longer invitation_s."
                )
            path = Path(directory) / "global.safetensors"
            size = int(response.headers["Content-Length"])
            store(path, self.model, self.round_id, response.stream(_CHUNK), size)
            return load_tensors(path, self.model)

    def push(self, state_dict: Mapping[str, Any], num_examples: int) -> Submitted:
        """Submit the trained weights, once.

        Raises:
            BadInput, RoundConflict, TensorTableMismatch: see `orchestrator.client.api.Client.push`.
        """
        if self._invitation is None:
            raise BadInput("This message asks for an evaluation; only messages to train take an update.")
        return self._client.push(state_dict, num_examples, invite=self._invitation)
