"""What the commands share: options, parsing at the edge, output, and errors as exit statuses."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import click
from botocore.exceptions import BotoCoreError, ClientError

from lambdas.errors import FederationError, InvalidName, InvalidUpdate
from orchestrator.aws import explain
from orchestrator.errors import BadInput

# What a command returns: the JSON document, and the text for people.
Answer = tuple[Any, str]

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?\Z")


class Duration(click.ParamType[float]):
    """Seconds, or hours, minutes and seconds such as `90s`, `30m`, `1h30m`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.match(value)
        if not value or match is None:
            self.fail(f"{value!r} is no duration: expected seconds or a form like 90s, 30m or 1h30m.", param, ctx)
        hours, minutes, seconds = match.groups()
        return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


class ShardCount(click.ParamType[int | None]):
    """A shard count, or `auto` (None)."""

    name = "auto|M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "auto":
            return None
        try:
            count = int(value)
        except ValueError:
            count = 0
        if count < 1:
            self.fail(f"{value!r} is no shard count: expected auto or a number from 1.", param, ctx)
        return count


def env_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--env`, the environment that a command works on."""
    return click.option(
        "--env", "env", default="local", envvar="FEDAGG_ENV", show_default=True, show_envvar=True,
        help="Environment: a directory under environments/.",
    )(command)  # fmt: skip


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--output`, and with it the way a command ends: data on stdout, errors as sentences and exit statuses."""

    @click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True,
                  help="json: one JSON document on stdout.")  # fmt: skip
    @functools.wraps(command)
    def wrapped(*args: Any, output: str, **kwargs: Any) -> None:
        try:
            document, text = command(*args, **kwargs)
        except (FederationError, ClientError, BotoCoreError) as error:
            fail(error, output)
        click.echo(json.dumps(document, indent=2) if output == "json" else text)

    return wrapped


def fail(error: FederationError | ClientError | BotoCoreError, output: str) -> None:
    """End the process: the error as a sentence on stderr (and as JSON on stdout), and its exit status."""
    if not isinstance(error, FederationError):
        error = explain(error)
    if isinstance(error, InvalidName | InvalidUpdate):
        error = BadInput(str(error))
    status = getattr(error, "exit_status", 1)
    click.echo(f"Error: {error}", err=True)
    if output == "json":
        document = {"error": {"kind": type(error).__name__, "message": str(error), "exit_status": status}}
        click.echo(json.dumps(document, indent=2))
    sys.exit(status)
