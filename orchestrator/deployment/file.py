"""The deployment file: an environment's `deployment` output as JSON, with which commands need no Terraform.

It has the names and URLs of the environment's resources, and no secret.
"""

from __future__ import annotations

from pathlib import Path

from lambdas.protocol.documents import load_json
from lambdas.protocol.errors import InvalidContract
from orchestrator.aws.deployment import Deployment, parse_deployment
from orchestrator.errors import BadInput, OrchestratorError

# A lane takes about 700 bytes.
_MAX_BYTES = 1024**2
_NEXT = "Pass the file that `orchestrator deploy` writes or `orchestrator show-deployment` prints."


def load_deployment_file(path: str | Path) -> Deployment:
    """The deployment that a file describes.

    Raises:
        BadInput: the file cannot be read, or is not a valid deployment file of this release.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"Cannot read the deployment file {path}: {reason}. {_NEXT}") from error
    what = f"{path} is not a valid deployment file"
    if len(data) > _MAX_BYTES:
        raise BadInput(f"{what}: it has more than {_MAX_BYTES:,} bytes. {_NEXT}")
    try:
        return parse_deployment(load_json(data), what)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what}: not JSON ({error}). {_NEXT}") from error
    except InvalidContract as error:
        raise BadInput(f"{error} {_NEXT}") from error


def save_deployment_file(deployment: Deployment, path: Path) -> None:
    """Write a deployment file, complete or not at all.

    Raises:
        OrchestratorError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(deployment.to_json() + "\n")
        partial.replace(path)
    except OSError as error:
        raise OrchestratorError(
            f"{deployment.environment} is deployed, and its deployment file {path} cannot be written: "
            f"{error.strerror}. `orchestrator show-deployment --env {deployment.environment}` prints it."
        ) from error


def resolve_deployment(given: Deployment | str | Path) -> Deployment:
    """A deployment, or the one that a file describes.

    Raises:
        BadInput: see `load_deployment_file`.
    """
    return given if isinstance(given, Deployment) else load_deployment_file(given)
