"""The Python API of a client: push a state_dict, pull the global model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lambdas.protocol.errors import InvalidName
from lambdas.protocol.keys import global_key
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.client import api as client_module
from orchestrator.client.api import Client
from orchestrator.errors import BadInput, NotDeployed, OrchestratorError, RoundConflict
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round
from tests.support.rounds import objects, read, working


def net(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )


def test_clients_push_a_round_runs_and_everybody_pulls_the_average(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    members = [Client(name, model="digits", deployment=lanes_without_functions) for name in ("a", "b")]
    nets = [net(1), net(2)]
    for member, network, examples in zip(members, nets, (1, 3), strict=True):
        assert member.latest_round() is None
        assert member.push(network.state_dict(), examples, round_id="r-1").created
    with working(aws, lanes_without_functions, 2):
        start_round(aws, lanes_without_functions, RoundRequest("digits", "r-1", 2, timeout_s=30.0))
    pulled = members[0].pull()
    fresh = net(3)
    fresh.load_state_dict(pulled)
    for name, first in nets[0].state_dict().items():
        second = nets[1].state_dict()[name]
        mean = (first.double() + 3 * second.double()) / 4
        expected = mean.to(first.dtype) if first.is_floating_point() else mean.round().to(first.dtype)
        assert torch.equal(pulled[name], expected)
        assert pulled[name].dtype == first.dtype
    assert members[1].latest_round() == "r-1"
    assert all(torch.equal(members[1].pull(round_id="r-1")[name], value) for name, value in pulled.items())
    pulled["3.weight"][0] = 7.0  # what was pulled is the caller's own


def test_pushing_again_changes_nothing_and_other_weights_are_a_conflict(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    member = Client("a", model="digits", deployment=lanes_without_functions)
    first = member.push(net(1).state_dict(), 5, round_id="r-1")
    assert not member.push(net(1).state_dict(), 5, round_id="r-1").created
    with pytest.raises(RoundConflict):
        member.push(net(2).state_dict(), 5, round_id="r-1")
    assert len(read(aws, lanes_without_functions, first.key)) == first.nbytes


def test_a_wire_dtype_makes_the_update_smaller(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    weights = {"w": torch.randn(1000)}
    full = Client("a", model="digits", deployment=lanes_without_functions).push(weights, 5, round_id="r-1")
    half = Client("b", model="digits", deployment=lanes_without_functions).push(
        weights, 5, round_id="r-1", wire="bfloat16"
    )
    assert full.nbytes - half.nbytes > 1800


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "x" * 300])
def test_names_that_cannot_be_keys_are_refused_at_once(lanes_without_functions: Deployment, name: str) -> None:
    with pytest.raises(InvalidName, match="is not a valid client id"):
        Client(name, model="digits", deployment=lanes_without_functions)
    with pytest.raises(InvalidName, match="is not a valid model"):
        Client("a", model=name, deployment=lanes_without_functions)


def test_bad_arguments_store_nothing(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    member = Client("a", model="digits", deployment=lanes_without_functions)
    calls: list[tuple[Any, Any, dict[str, Any]]] = [
        (net(1).state_dict(), 0, {}),
        (net(1).state_dict(), -1, {}),
        (net(1).state_dict(), 2**40, {}),
        (net(1).state_dict(), 5, {"wire": "float8"}),
        (net(1).state_dict(), 5, {"wire": "BF16"}),
        (net(1), 5, {}),
        ({}, 5, {}),
    ]
    for state_dict, examples, options in calls:
        with pytest.raises(BadInput):
            member.push(state_dict, examples, round_id="r-1", **options)
    with pytest.raises(InvalidName):
        member.push(net(1).state_dict(), 5, round_id="a/b")
    assert objects(aws, lanes_without_functions) == []


def test_pulling_before_the_first_publication_says_so(lanes_without_functions: Deployment) -> None:
    member = Client("a", model="digits", deployment=lanes_without_functions)
    with pytest.raises(BadInput, match="Model digits has no global model yet"):
        member.pull()
    with pytest.raises(BadInput, match="Round r-1 has published no global model of digits"):
        member.pull(round_id="r-1")


def test_without_a_deployment_the_environments_is_loaded(
    lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(environment: str) -> Deployment:
        asked.append(environment)
        if environment == "dev":
            raise NotDeployed("Environment dev is not deployed.")
        return lanes_without_functions

    monkeypatch.setattr(client_module, "load_deployment", load)
    assert Client("a", model="digits").latest_round() is None
    with pytest.raises(NotDeployed):
        Client("a", model="digits", env="dev").latest_round()
    assert asked == ["local", "dev"]


def test_importing_the_client_does_not_import_torch() -> None:
    import subprocess

    program = "import sys, orchestrator.client; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_is_no_model_is_not_pulled(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    key = global_key("digits", "r-1")
    aws.s3.put_object(Bucket=lanes_without_functions.bucket, Key=key, Body=b"\xff" * 99)
    member = Client("a", model="digits", deployment=lanes_without_functions)
    with pytest.raises(
        OrchestratorError, match=r"model of digits is not a valid safetensors file.*orchestrator verify"
    ):
        member.pull(round_id="r-1")


def test_a_client_takes_a_deployment_or_the_path_of_its_file(
    lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(client_module, "load_deployment", lambda env: pytest.fail("no environment is needed"))
    path = tmp_path / "deployment.json"
    path.write_text(lanes_without_functions.to_json())
    for deployment in (lanes_without_functions, path, str(path)):
        assert Client("a", model="digits", deployment=deployment).latest_round() is None
    with pytest.raises(BadInput, match="Cannot read the deployment file nowhere"):
        Client("a", model="digits", deployment="nowhere").latest_round()
