"""The Python API of a federation's client: push a state_dict, pull the global model.

client = Client("hospital-7", model="digits", env="local")
client.push(net.state_dict(), num_examples=1203, round_id="r-0001")
net.load_state_dict(client.pull())
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdas.contract import check_name
from orchestrator.aws import Clients, connect
from orchestrator.deployment import Deployment, load_deployment
from orchestrator.errors import BadInput
from orchestrator.fetch import fetch, latest_model
from orchestrator.submit import WIRE_NAMES, Submitted, from_state_dict, submit


class Client:
    """One participant of a federation.

    Args:
        client_id: 1 to 128 letters, digits, `-`, `_`.
        model: the model's name.
        env: the environment, by its Terraform directory.
        deployment: instead of `env`, a deployment that is already known.

    Raises:
        InvalidName: a name that cannot be part of a key.
        NotDeployed: the environment is not deployed.
    """

    def __init__(self, client_id: str, *, model: str, env: str = "local", deployment: Deployment | None = None) -> None:
        self.client_id = check_name("client id", client_id)
        self.model = check_name("model", model)
        self._deployment = deployment or load_deployment(env)
        self._clients: Clients = connect(self._deployment.region, self._deployment.endpoint_url)

    def push(
        self, state_dict: Mapping[str, Any], num_examples: int, *, round_id: str, wire: str | None = None
    ) -> Submitted:
        """Submit weights to a round, once.

        Args:
            state_dict: name to torch.Tensor or numpy array.
            num_examples: how many examples the client trained on, its weight in the average.
            wire: `bfloat16` or `float16` to send float32 tensors in that dtype.

        Raises:
            BadInput, InvalidName, RoundConflict, TensorTableMismatch: see `orchestrator.submit.submit`.
        """
        if wire is not None and wire not in WIRE_NAMES:
            raise BadInput(f"Unknown wire dtype {wire!r}; expected one of {', '.join(WIRE_NAMES)}.")
        return submit(
            self._clients.s3,
            self._deployment.bucket,
            round_id,
            self.client_id,
            from_state_dict(state_dict),
            num_examples,
            wire=WIRE_NAMES[wire] if wire else None,
        )

    def pull(self, *, round_id: str | None = None) -> dict[str, Any]:
        """The newest global model, or that of a round: name to torch.Tensor on the CPU.

        Raises:
            BadInput: nothing is published yet.
        """
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory(prefix="fedagg-") as directory:
            path = Path(directory) / "global.safetensors"
            fetch(self._clients.s3, self._deployment.bucket, self.model, path, round_id=round_id)
            result: dict[str, Any] = load_file(path)
            return {name: tensor.clone() for name, tensor in result.items()}

    def latest_round(self) -> str | None:
        """Id of the round that published the newest global model; None before the first."""
        latest = latest_model(self._clients.s3, self._deployment.bucket, self.model)
        return latest.round_id if latest else None
