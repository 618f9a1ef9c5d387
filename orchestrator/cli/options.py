"""What the commands share: options, parsing of their values, output, and errors as exit statuses."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from lambdas.protocol.errors import FederationError, InvalidName, InvalidUpdate
from lambdas.protocol.keys import check_name
from orchestrator.cli.group import error_json
from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

    from lambdas.storage.bucket import Bucket
    from orchestrator.aws.clients import AwsClients
    from orchestrator.aws.deployment import Deployment

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
            expected = "expected seconds or a form like 90s, 30m or 1h30m"
            self.fail(f"{value!r} is not a valid duration: {expected}.", param, ctx)
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
            self.fail(f"{value!r} is not a valid shard count: expected auto or a number from 1.", param, ctx)
        return count


class Quorum(click.ParamType[tuple[int, float | None]]):
    """A quorum: a number of clients, or a share of the expected clients (`0.8`, `80%`), as (count, share)."""

    name = "n|share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float | None]:
        if isinstance(value, tuple):
            return value
        if isinstance(value, int):
            return value, None
        match = _QUORUM.match(value)
        if match is None:
            expected = "expected a number of clients, or a share like 0.8 or 80%"
            self.fail(f"{value!r} is not a valid quorum: {expected}.", param, ctx)
        count, share, percent = match.groups()
        if count:
            return int(count), None
        return 1, float(share) if share else float(Decimal(percent) / 100)


class ClientList(click.ParamType[tuple[str, ...]]):
    """Client ids: a file with one per line (blank lines and `#` comments are ignored), or `a,b,c`."""

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
            self.fail(f"{value!r} names no client: expected a file with one client id per line, or a,b,c.", param, ctx)
        return tuple(names)


@dataclass(frozen=True)
class Where:
    """Which deployment a command works on: the one that a deployment file describes, else that of an environment."""

    env: str
    file: Path | None


def connect_to(where: Where) -> tuple[Deployment, AwsClients]:
    """The deployment that a command works on, and AWS clients for it.

    Raises:
        BadInput: there is no such environment, or the file is not a valid deployment file.
        NotDeployed: nothing is deployed in the environment.
    """
    from orchestrator.aws.clients import connect

    if where.file is not None:
        from orchestrator.deployment.file import load_deployment_file

        deployment = load_deployment_file(where.file)
    else:
        from orchestrator.deployment import load, terraform

        terraform.environment_dir(where.env)
        deployment = load.load_deployment(where.env)
    return deployment, connect(deployment.region, deployment.endpoint_url)


def bucket_of(where: Where) -> Bucket:
    """The bucket of a deployment; raises as `connect_to`."""
    deployment, aws = connect_to(where)
    return aws.bucket(deployment.bucket)


env_option = click.option(
    "--env", "env", default="local", envvar="FEDAGG_ENV", show_envvar=True,
    help="The environment: a directory under environments/.",
)  # fmt: skip


def deployment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--env` and `--deployment`, of which a command gets the one that holds, as `where`."""

    @env_option
    @click.option(
        "--deployment", "deployment_file", type=click.Path(path_type=Path), metavar="FILE",
        envvar="FEDAGG_DEPLOYMENT", show_envvar=True,
        help="Instead of --env: the file that `orchestrator deploy` writes. Needs neither Terraform nor a checkout.",
    )  # fmt: skip
    @functools.wraps(command)
    def wrapped(*args: Any, env: str, deployment_file: Path | None, **kwargs: Any) -> Any:
        where = Where(env, deployment_file)
        if deployment_file is not None:
            ctx = click.get_current_context()
            by = ctx.get_parameter_source("env"), ctx.get_parameter_source("deployment_file")
            if by == (ParameterSource.COMMANDLINE, ParameterSource.COMMANDLINE):
                raise click.UsageError("--env and --deployment name one deployment each. Pass only one of them.")
            if by == (ParameterSource.ENVIRONMENT, ParameterSource.ENVIRONMENT):
                raise click.UsageError(
                    "FEDAGG_ENV and FEDAGG_DEPLOYMENT name one deployment each. Unset one of them, or pass --env or "
                    "--deployment."
                )
            if by[0] is ParameterSource.COMMANDLINE:  # it takes precedence over an environment variable
                where = Where(env, None)
        return command(*args, where=where, **kwargs)

    return wrapped


round_option = click.option("--round", "round_id", required=True, help="The round's id.")


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--output`, and how a command ends: data on stdout, errors as sentences on stderr and as exit statuses."""

    @click.option("--output", type=click.Choice(["text", "json"]), default="text",
                  help="json: print one JSON document on stdout.")  # fmt: skip
    @functools.wraps(command)
    def wrapped(*args: Any, output: str, **kwargs: Any) -> None:
        try:
            document, text = command(*args, **kwargs)
        except FederationError as error:
            fail(error, output)
        except _botocore_errors() as error:
            from orchestrator.aws.clients import explain

            fail(explain(error), output)
        click.echo(json.dumps(document, indent=2) if output == "json" else text)

    return wrapped


def _botocore_errors() -> tuple[type[ClientError | BotoCoreError], ...]:
    """The errors that boto3 raises; none if it is not loaded. Python calls this only when an error is raised."""
    if "botocore" not in sys.modules:
        return ()
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError


def fail(error: FederationError, output: str) -> NoReturn:
    """End the process: the error as a sentence on stderr (and as JSON on stdout), and its exit status."""
    if isinstance(error, InvalidName | InvalidUpdate):
        error = BadInput(str(error))
    status = getattr(error, "exit_status", 1)
    click.echo(f"Error: {error}", err=True)
    if output == "json":
        click.echo(error_json(type(error).__name__, str(error), status, getattr(error, "details", None)))
    sys.exit(status)
