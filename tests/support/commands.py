"""The command line, run within the process of the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from orchestrator.cli.main import main


def run(*arguments: str | Path, ok: bool = True) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert not ok or result.exit_code == 0, result.stderr
    return result


def error_of(result: Result) -> dict[str, Any]:
    """The error, which is on stdout as one JSON document and on stderr as a sentence."""
    document: dict[str, Any] = json.loads(result.stdout)["error"]
    assert document["exit_status"] == result.exit_code
    assert f"Error: {document['message']}" in result.stderr
    return document
