"""A deployment as its users see it: its environment, its functions, and the command line in a second terminal."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.aws.clients import make_client
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.deployment import terraform
from orchestrator.deployment.load import load_deployment
from tests.support.inventory import Inventory

# What the end-to-end tests deploy.
MODEL_BYTES = 45_000_000
CLIENTS = 12
SHARD_COUNTS = [1, 4, 8]


@dataclass
class Environment:
    """An environment that only this test run uses.

    Attributes:
        name: its directory under environments/.
        shared: the account or emulator exists before and after this run, and others may use it.
        applied: Terraform has created resources that must be destroyed.
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
        """The resources that AWS lists."""
        return Inventory(deployed.region, deployed.endpoint_url, self.variables["name_prefix"], self.shared)

    def arguments(self) -> list[str]:
        """The variables as options of `orchestrator deploy` and `orchestrator destroy`."""
        return [word for name, value in self.variables.items() for word in ("--var", f"{name}={json.dumps(value)}")]


class Functions:
    """What an operator may do to the function of a lane, without the orchestrator."""

    def __init__(self, deployed: Deployment) -> None:
        self._lambda = make_client("lambda", deployed.region, deployed.endpoint_url)

    @contextlib.contextmanager
    def paused(self, lane: Lane) -> Iterator[None]:
        """While the block runs, the function takes no jobs from the queue of the lane."""
        self._enable(lane, False)
        try:
            yield
        finally:
            self._enable(lane, True)

    @contextlib.contextmanager
    def misconfigured(self, lane: Lane, **variables: str) -> Iterator[None]:
        """While the block runs, the function has these environment variables in addition."""
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


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Wait for a change that AWS makes asynchronously. `what` completes the sentence of the failure."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s until {what}"
        time.sleep(0.3)


class Terminal:
    """A second terminal of the user: the command runs in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=self.directory,
            env=dict(os.environ),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, expect: int = 0, timeout_s: float = 180) -> Any:
        """Run a command with `--output json`, and return its JSON document."""
        return self.finish(self.start(*arguments, "--output", "json"), expect, timeout_s)

    def finish(self, process: subprocess.Popen[str], expect: int = 0, timeout_s: float = 180) -> Any:
        out, err = process.communicate(timeout=timeout_s)
        assert process.returncode == expect, f"exit status {process.returncode}\n{out}\n{err}"
        return json.loads(out)
