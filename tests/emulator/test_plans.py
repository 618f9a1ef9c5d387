"""A plan right after an apply is empty, in this checkout and in another one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.aws.deployment import Deployment
from orchestrator.paths import ROOT
from tests.emulator.conftest import Environment


def _plan(checkout: Path, environment: Environment) -> str:
    """What `orchestrator deploy --plan` of a checkout says."""
    arguments = [
        word
        for name, value in zip(environment.arguments()[::2], environment.arguments()[1::2], strict=True)
        # The path, the runtime and the emulator are the command's own business.
        if not value.startswith(("package_path=", "runtime=", "cpu_architecture=", "aws_endpoint_url="))
        for word in (name, value)
    ]
    result = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "deploy", "--env", environment.name, "--plan", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_a_second_plan_is_empty(environment: Environment, deployed: Deployment) -> None:
    assert "No changes. Your infrastructure matches the configuration." in _plan(ROOT, environment)


def test_a_plan_from_another_checkout_is_empty(environment: Environment, deployed: Deployment, tmp_path: Path) -> None:
    if environment.name != "local":
        pytest.skip("another checkout has no backend.hcl")
    ignored = shutil.ignore_patterns(".terraform", "*.auto.tfvars", "backend.hcl", "__pycache__", "*.tfstate*")
    for name in ("orchestrator", "lambdas", "infra", "environments"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    found = _plan(tmp_path, environment)
    assert list((tmp_path / "build").glob("*.zip")), "it builds a zip of its own"
    assert "No changes. Your infrastructure matches the configuration." in found
