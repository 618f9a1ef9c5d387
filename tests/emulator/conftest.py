"""A deployment made by a real `terraform apply`, once for all end-to-end tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import package, terraform
from orchestrator.deployment import Deployment, load_deployment

MODEL_BYTES = 30_000_000
CLIENTS = 12
SHARD_COUNTS = [1, 2, 4, 8]


@pytest.fixture(scope="session")
def terraform_variables(endpoint_url: str) -> dict[str, Any]:
    target = package.target_for("local")
    return {
        "aws_endpoint_url": endpoint_url,
        "package_path": str(package.build(target)),
        "runtime": target.runtime,
        "architecture": target.architecture,
        "model_bytes": MODEL_BYTES,
        "clients": CLIENTS,
        "shard_counts": SHARD_COUNTS,
        "baselines": True,
    }


@pytest.fixture(scope="session")
def deployed(terraform_variables: dict[str, Any]) -> Deployment:
    """environments/local, applied to the emulator."""
    terraform.apply("local", terraform_variables, show=False)
    return load_deployment("local")


class Terminal:
    """A user's second terminal: the installed command, in a process of its own."""

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

    def run(self, *arguments: str, expect: int = 0) -> Any:
        """Run a command with `--output json`; its one JSON document."""
        return self.finish(self.start(*arguments, "--output", "json"), expect)

    def finish(self, process: subprocess.Popen[str], expect: int = 0) -> Any:
        out, err = process.communicate(timeout=120)
        assert process.returncode == expect, f"exit status {process.returncode}\n{out}\n{err}"
        return json.loads(out)


@pytest.fixture
def terminal(deployed: Deployment, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)
