"""The Python API of a client: submit a state_dict to a round, and get the global model.

    from orchestrator import Client

    client = Client("hospital-7", model="digits", env="local")
    client.push(net.state_dict(), num_examples=1203, round_id="r-0001")
    net.load_state_dict(client.pull())

With an invitation from `orchestrator invite`, a client needs neither AWS credentials nor the environment:

    client = Client("hospital-7", model="digits")
    net.load_state_dict(client.pull(invite="r-0001-hospital-7.json"))
    client.push(net.state_dict(), num_examples=1203, invite="r-0001-hospital-7.json")
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lambdas.protocol.keys import check_name
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import connect
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.models import latest_model
from orchestrator.client.fetch import fetch
from orchestrator.client.invitation import Invitation, check_matches, load_invitation
from orchestrator.client.redeem import fetch_invited, submit_invited
from orchestrator.client.sources import from_state_dict
from orchestrator.client.submit import Submitted, submit
from orchestrator.client.wire import WIRE_NAMES
from orchestrator.deployment.file import resolve_deployment
from orchestrator.deployment.load import load_deployment
from orchestrator.errors import BadInput, OrchestratorError

# An invitation: its file, its text, or its parsed JSON.
Invite = str | Path | Mapping[str, Any]


class Client:
    """One participant of a federation.

    The deployment is loaded when it is first needed: a client with an invitation needs none.

    Args:
        client_id: 1 to 128 letters, digits, `-`, `_`.
        env: the environment, a directory of environments/.
        deployment: the deployment to use instead of that of `env`, or the path of a deployment file.

    Raises:
        InvalidName: `client_id` or `model` cannot be part of a key.
    """

    def __init__(
        self, client_id: str, *, model: str, env: str = "local", deployment: Deployment | str | Path | None = None
    ) -> None:
        self.client_id = check_name("client id", client_id)
        self.model = check_name("model", model)
        self._env = env
        self._given = deployment

    @cached_property
    def _deployment(self) -> Deployment:
        return load_deployment(self._env) if self._given is None else resolve_deployment(self._given)

    @cached_property
    def _bucket(self) -> Bucket:
        deployment = self._deployment
        return connect(deployment.region, deployment.endpoint_url).bucket(deployment.bucket)

    def push(
        self,
        state_dict: Mapping[str, Any],
        num_examples: int,
        *,
        round_id: str | None = None,
        wire: str | None = None,
        invite: Invite | None = None,
    ) -> Submitted:
        """Submit weights to a round, once.

        Args:
            state_dict: name to torch.Tensor or numpy array.
            num_examples: the number of examples that the client trained on, its weight in the average.
            round_id: the round. An invitation is for one round and makes it unnecessary.
            wire: `bfloat16` or `float16` to store float32 tensors in that dtype. An invitation determines it.
            invite: an invitation: its file, its text or the parsed JSON.

        Raises:
            BadInput, InvalidName, RoundConflict, TensorTableMismatch: see `orchestrator.client.submit.submit` and
                `orchestrator.client.redeem.submit_invited`.
            NotDeployed: the environment is not deployed.
        """
        if wire is not None and wire not in WIRE_NAMES:
            raise BadInput(f"Unknown wire dtype {wire!r}; expected one of {', '.join(WIRE_NAMES)}.")
        dtype = WIRE_NAMES[wire] if wire else None
        if invite is not None:
            invitation = self._invitation(invite)
            check_matches(invitation, round_id=round_id, wire=dtype)
            return submit_invited(invitation, from_state_dict(state_dict), num_examples)
        if round_id is None:
            raise BadInput("Name the round: push(..., round_id=...), or pass an invitation: push(..., invite=...).")
        return submit(self._bucket, round_id, self.client_id, from_state_dict(state_dict), num_examples, wire=dtype)

    def pull(self, *, round_id: str | None = None, invite: Invite | None = None) -> dict[str, Any]:
        """The newest global model, or that of a round: name to torch.Tensor on the CPU.

        Args:
            invite: an invitation. It gives the model of its round if that is published, else the one to start from.

        Raises:
            BadInput: no such global model is published yet.
            NotDeployed: the environment is not deployed.
            OrchestratorError: the stored object is not a valid model.
        """
        with tempfile.TemporaryDirectory(prefix="fedagg-") as directory:
            path = Path(directory) / "global.safetensors"
            if invite is not None:
                fetch_invited(self._invitation(invite), path, round_id=round_id)
            else:
                fetch(self._bucket, self.model, path, round_id=round_id)
            return load_tensors(path, self.model)

    def _invitation(self, invite: Invite) -> Invitation:
        invitation = load_invitation(invite)
        check_matches(invitation, client=self.client_id, model=self.model)
        return invitation

    def latest_round(self) -> str | None:
        """Id of the round that published the newest global model; None if there is none yet."""
        latest = latest_model(self._bucket, self.model)
        return latest.round_id if latest else None


def load_tensors(path: Path, model: str) -> dict[str, Any]:
    """The tensors of a fetched global model: name to torch.Tensor on the CPU. The file may be deleted afterwards.

    Raises:
        OrchestratorError: the file is not a valid safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise OrchestratorError(
            f"The stored global model of {model} is not a valid safetensors file ({error}): it was not written by a "
            "round. Run `orchestrator verify` to see what was changed."
        ) from error
    return {name: tensor.clone() for name, tensor in tensors.items()}
