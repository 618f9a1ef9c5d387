"""The project as users install it: a wheel in a virtual environment of its own, outside a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.paths import ROOT


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel.

    Attributes:
        bin: the directory of its programs.
        tools: a directory that stands first in PATH; its `terraform` fails, so that nothing can need Terraform.
    """

    bin: Path
    tools: Path

    def environ(self, **variables: str) -> dict[str, str]:
        """Environment variables for a process, without those of the test run."""
        return {
            "PATH": f"{self.tools}:{self.bin}:/usr/bin:/bin",
            "HOME": str(self.tools.parent),
            "LANG": "C.UTF-8",
            **variables,
        }

    def start(self, *arguments: str | Path, cwd: Path, **variables: str) -> subprocess.Popen[str]:
        """Start `orchestrator` in a directory."""
        return subprocess.Popen(
            [self.bin / "orchestrator", *arguments], cwd=cwd, env=self.environ(**variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str | Path, cwd: Path, expect: int = 0, **variables: str) -> Any:
        """Run `orchestrator` with `--output json` in a directory, and return its document."""
        process = self.start(*arguments, "--output", "json", cwd=cwd, **variables)
        out, err = process.communicate(timeout=120)
        assert process.returncode == expect, err
        return json.loads(out)

    def python(self, code: str, *, cwd: Path) -> str:
        """Run a program, and return what it prints."""
        return subprocess.run(
            [self.bin / "python", "-c", code], cwd=cwd, env=self.environ(), text=True, capture_output=True, check=True
        ).stdout


def install(directory: Path) -> Installation:
    """Build the wheel and install it without a network; its dependencies are those of the test run."""
    source = directory / "source"
    for package in ("orchestrator", "lambdas"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # The sources are a copy, because setuptools builds in their directory, where files of an older build would stay.
    _call(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", directory, source)
    shutil.rmtree(source)
    _call(sys.executable, "-m", "venv", "--without-pip", directory / "venv")
    bin_ = directory / "venv" / "bin"
    _call(*pip, "--python", bin_ / "python", "install", "--no-deps", "--no-index", *directory.glob("*.whl"))
    [packages] = (directory / "venv").glob("lib/python*/site-packages")
    # Python reads no .pth files in a directory that a .pth file names: an editable installation stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    tools = directory / "tools"
    tools.mkdir()
    write_program(tools / "terraform", "echo 'Terraform is not to be run here.' >&2; exit 99")
    return Installation(bin_, tools)


def write_program(path: Path, script: str) -> None:
    """Write a shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _call(*arguments: str | Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(a) for a in arguments], env=environ, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
