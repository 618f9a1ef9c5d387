"""Loads the deployment of an environment from Terraform's outputs."""

from __future__ import annotations

from typing import Any

from lambdas.protocol.errors import InvalidContract
from orchestrator.aws.deployment import Deployment, parse_deployment
from orchestrator.deployment import terraform
from orchestrator.errors import NotDeployed


def load_deployment(environment: str) -> Deployment:
    """The deployment of an environment, from its Terraform state.

    Raises:
        NotDeployed: the environment is not deployed, or by another release.
        BadInput: there is no such environment.
    """
    outputs: dict[str, Any] = terraform.outputs(environment)
    if "deployment" not in outputs:
        raise NotDeployed(
            f"Environment {environment} is not deployed. Run `orchestrator deploy --env {environment}` first"
            + (", with the emulator running (`orchestrator emulator start`)." if environment == "local" else ".")
        )
    try:
        return parse_deployment(outputs["deployment"]["value"])
    except InvalidContract as error:
        raise NotDeployed(f"{error} Deploy environment {environment} again with this release.") from error
