"""One deployment for all end-to-end tests, made by a real `terraform apply`, on whichever AWS the run talks to.

That is an emulator of the run's own (EMULATOR), one that is already running (AWS_ENDPOINT_URL), or an AWS account
(FEDAGG_TEST_ENV, set by `make test-aws` only). What was created is destroyed, whether the tests pass or not.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from orchestrator.aws.clients import AwsClients, connect
from orchestrator.aws.deployment import Deployment
from orchestrator.deployment import function_zip
from orchestrator.emulators import emulator
from orchestrator.emulators.daemon import free_port
from orchestrator.progress import StderrNarration
from tests.support.deployed import CLIENTS, MODEL_BYTES, SHARD_COUNTS, Environment, Functions, Terminal


@pytest.fixture(scope="package")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment that the tests run in; nothing is in it yet, and nothing is left of it afterwards."""
    name = os.environ.get("FEDAGG_TEST_ENV", "local")
    variables: dict[str, Any] = {
        "name_prefix": os.environ.get("FEDAGG_TEST_PREFIX", f"fedagg-test-{uuid4().hex[:6]}"),
        "model_bytes": MODEL_BYTES,
        "clients": CLIENTS,
        "shard_counts": SHARD_COUNTS,
        "baselines": True,
    }
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("FEDAGG_ENV", name)
        patch.setenv("FEDAGG_HOME", str(tmp_path_factory.mktemp("home")))
        if name == "local":
            running = emulator.start(free_port(), StderrNarration())
            stack.callback(emulator.stop)
            variables |= function_zip.variables(function_zip.target_for(name, running.kind))
            variables["aws_endpoint_url"] = running.url
            found = Environment(name, variables, shared=running.pid is None)
        else:
            variables |= function_zip.variables(function_zip.target_for(name))
            # Whatever local.auto.tfvars says, nothing of the user's is taken over.
            variables |= {"bucket_name": f"{variables['name_prefix']}-bucket", "create_github_oidc_provider": False}
            variables |= {"force_destroy": True}  # or staging and prod would keep what the tests leave
            found = Environment(name, variables, shared=True)
        if found.shared:
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupt))
        try:
            yield found
        finally:
            if found.applied and found.shared:
                found.destroy()


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="package")
def deployed(environment: Environment) -> Deployment:
    """The environment, applied."""
    return environment.apply()


@pytest.fixture(scope="package")
def aws(deployed: Deployment) -> AwsClients:
    """S3 and SQS of the deployment."""
    return connect(deployed.region, deployed.endpoint_url)


@pytest.fixture(scope="package")
def functions(deployed: Deployment) -> Functions:
    """The lanes' functions."""
    return Functions(deployed)


@pytest.fixture
def terminal(deployed: Deployment, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that destroys the deployment is the last of those that use it."""
    here = [index for index, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ordered = sorted((items[index] for index in here), key=lambda item: item.path.name == "test_destroy.py")
    for index, item in zip(here, ordered, strict=True):
        items[index] = item
