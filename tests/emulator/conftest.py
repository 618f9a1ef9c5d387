"""One deployment for all end-to-end tests, made by a real `terraform apply`, on whichever AWS the run talks to.

That is an emulator of the run's own (EMULATOR), one that is already running (AWS_ENDPOINT_URL), or an AWS account
(FEDAGG_TEST_ENV, set by `make test-aws` only). What was created is destroyed, whether the tests pass or not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from orchestrator.aws.clients import AwsClients, connect, make_client
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.deployment import function_zip, terraform
from orchestrator.deployment.load import load_deployment
from orchestrator.emulators import emulator
from orchestrator.emulators.daemon import free_port
from orchestrator.progress import StderrNarration
from tests.inventory import Inventory

MODEL_BYTES = 45_000_000
CLIENTS = 12
SHARD_COUNTS = [1, 4, 8]


@dataclass
class Environment:
    """An environment of this test run's own.

    Attributes:
        name: its directory under environments/.
        shared: others use the same AWS, which outlives this run.
        applied: there is something to destroy.
    """

    name: str
    variables: dict[str, Any]
    shared: bool
    applied: bool = False

    def apply(self) -> Deployment:
        self.applied = True
        terraform.apply(self.name, self.variables, show=False)
        return load_deployment(self.name)

    def destroy(self) -> None:
        terraform.destroy(self.name, self.variables, show=False)
        self.applied = False

    def inventory(self, deployed: Deployment) -> Inventory:
        """What AWS lists."""
        return Inventory(deployed.region, deployed.endpoint_url, self.variables["name_prefix"], self.shared)

    def arguments(self) -> list[str]:
        """The variables as `orchestrator deploy` and `destroy` take them."""
        return [word for name, value in self.variables.items() for word in ("--var", f"{name}={json.dumps(value)}")]


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


class Functions:
    """What an operator may do to a lane's function, by AWS's own calls."""

    def __init__(self, deployed: Deployment) -> None:
        self._lambda = make_client("lambda", deployed.region, deployed.endpoint_url)

    @contextlib.contextmanager
    def paused(self, lane: Lane) -> Iterator[None]:
        """No function takes jobs from the lane's queue meanwhile."""
        self._enable(lane, False)
        try:
            yield
        finally:
            self._enable(lane, True)

    @contextlib.contextmanager
    def misconfigured(self, lane: Lane, **variables: str) -> Iterator[None]:
        """The lane's function has other environment variables meanwhile."""
        right = self._lambda.get_function_configuration(FunctionName=lane.function_name)["Environment"]["Variables"]
        self._configure(lane, {**right, **variables})
        try:
            yield
        finally:
            self._configure(lane, right)

    def _enable(self, lane: Lane, enabled: bool) -> None:
        mappings = self._lambda.list_event_source_mappings(FunctionName=lane.function_name)["EventSourceMappings"]
        uuid = mappings[0]["UUID"]
        self._lambda.update_event_source_mapping(UUID=uuid, Enabled=enabled)
        wanted = "Enabled" if enabled else "Disabled"
        wait_until(lambda: self._lambda.get_event_source_mapping(UUID=uuid)["State"] == wanted, f"mapping is {wanted}")

    def _configure(self, lane: Lane, variables: dict[str, str]) -> None:
        self._lambda.update_function_configuration(
            FunctionName=lane.function_name, Environment={"Variables": variables}
        )
        self._lambda.get_waiter("function_updated_v2").wait(FunctionName=lane.function_name)


@pytest.fixture(scope="package")
def functions(deployed: Deployment) -> Functions:
    """The lanes' functions."""
    return Functions(deployed)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Wait for something that AWS does in its own time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s until {what}"
        time.sleep(0.3)


class Terminal:
    """A user's second terminal: the installed command, in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli.main", *arguments],
            cwd=self.directory,
            env=dict(os.environ),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, expect: int = 0, timeout_s: float = 180) -> Any:
        """Run a command with `--output json`; its one JSON document."""
        return self.finish(self.start(*arguments, "--output", "json"), expect, timeout_s)

    def finish(self, process: subprocess.Popen[str], expect: int = 0, timeout_s: float = 180) -> Any:
        out, err = process.communicate(timeout=timeout_s)
        assert process.returncode == expect, f"exit status {process.returncode}\n{out}\n{err}"
        return json.loads(out)


@pytest.fixture
def terminal(deployed: Deployment, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that destroys the deployment is the last of those that use it."""
    here = [index for index, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ordered = sorted((items[index] for index in here), key=lambda item: item.path.name == "test_destroy.py")
    for index, item in zip(here, ordered, strict=True):
        items[index] = item
