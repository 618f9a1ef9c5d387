"""docs/reference/cli.md is generated from the commands."""

from __future__ import annotations

import subprocess
import sys

from orchestrator.cli.main import SECTIONS
from orchestrator.paths import ROOT


def test_the_reference_of_the_command_line_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "cli_reference.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_reference_has_every_command() -> None:
    headings = (ROOT / "docs" / "reference" / "cli.md").read_text().splitlines()
    for entries in SECTIONS.values():
        for name in entries:
            assert f"## orchestrator {name}" in headings or name == "emulator"
    for name in ("start", "stop", "status"):
        assert f"## orchestrator emulator {name}" in headings
