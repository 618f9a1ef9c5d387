"""What the commands share: options, parsing at the edge, output, and errors as exit statuses."""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from botocore.exceptions import BotoCoreError, ClientError

from lambdas.protocol.errors import FederationError, InvalidName, InvalidUpdate
from lambdas.protocol.keys import check_name
from orchestrator.aws.clients import AwsClients, connect, explain
from orchestrator.aws.deployment import Deployment
from orchestrator.deployment import terraform
from orchestrator.deployment.load import load_deployment
from orchestrator.errors import BadInput, PlanningError, VerificationFailed

# What a command returns: the JSON document, and the text for people.
Answer = tuple[Any, str]

_QUORUM = re.compile(r"(\d{1,9})\Z|([01]?\.\d{1,9})\Z|(\d{1,3}(?:\.\d{1,6})?)%\Z")
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


class Quorum(click.ParamType[tuple[int, float | None]]):
    """A quorum: a number of clients, or a share of those that are expected (`0.8`, `80%`), as (count, share)."""

    name = "n|share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float | None]:
        if isinstance(value, tuple):
            return value
        if isinstance(value, int):
            return value, None
        match = _QUORUM.match(value)
        if match is None:
            self.fail(f"{value!r} is no quorum: expected a number of clients, or a share like 0.8 or 80%.", param, ctx)
        count, share, percent = match.groups()
        if count:
            return int(count), None
        return 1, float(share) if share else float(Decimal(percent) / 100)


class ClientList(click.ParamType[tuple[str, ...]]):
    """Client ids: a file with one on each line (blank lines and `#` comments aside), or `a,b,c`."""

    name = "file|a,b,c"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            is_file = Path(value).is_file()
        except (OSError, ValueError):  # too long for a path
            is_file = False
        if is_file:
            try:
                lines = Path(value).read_text().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                self.fail(f"Cannot read {value}: {error}.", param, ctx)
            names = [line.split("#", 1)[0].strip() for line in lines]
        else:
            names = [name.strip() for name in value.split(",")]
        names = [name for name in names if name]
        try:
            for name in names:
                check_name("client id", name)
        except InvalidName as error:
            self.fail(f"{error}" if is_file else f"{error} (There is no file {value[:200]!r} either.)", param, ctx)
        if not names:
            self.fail(f"{value!r} names no client.", param, ctx)
        return tuple(names)


def connect_to(env: str) -> tuple[Deployment, AwsClients]:
    """An environment's deployment, and clients for it.

    Raises:
        BadInput: there is no such environment.
        NotDeployed: nothing is deployed in it.
    """
    terraform.environment_dir(env)
    deployment = load_deployment(env)
    return deployment, connect(deployment.region, deployment.endpoint_url)


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


class Commands(click.Group):
    """A command group whose usage errors, too, are a JSON document on stdout where `--output json` is asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember the words; parsing takes them away."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            words = ctx.meta[__name__]
            if "--output=json" in words or ("--output", "json") in itertools.pairwise(words):
                _echo_error("UsageError", error.format_message(), error.exit_code)
            raise


def _echo_error(kind: str, message: str, status: int) -> None:
    click.echo(json.dumps({"error": {"kind": kind, "message": message, "exit_status": status}}, indent=2))


def fail(error: FederationError | ClientError | BotoCoreError, output: str) -> None:
    """End the process: the error as a sentence on stderr (and as JSON on stdout), and its exit status."""
    if not isinstance(error, FederationError):
        error = explain(error)
    if isinstance(error, InvalidName | InvalidUpdate):
        error = BadInput(str(error))
    status = getattr(error, "exit_status", 1)
    click.echo(f"Error: {error}", err=True)
    if output == "json":
        document: dict[str, Any] = {
            "error": {"kind": type(error).__name__, "message": str(error), "exit_status": status}
        }
        if isinstance(error, PlanningError | VerificationFailed):
            document |= error.details
        click.echo(json.dumps(document, indent=2))
    sys.exit(status)
