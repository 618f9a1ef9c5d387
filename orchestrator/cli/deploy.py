"""The commands that build, deploy and destroy, and those of the embedded emulator."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from orchestrator.aws.deployment import Deployment
from orchestrator.cli.options import Answer, env_option, output_option
from orchestrator.deployment import function_zip, terraform
from orchestrator.deployment.load import load_deployment
from orchestrator.deployment.protection import check_destroyable
from orchestrator.emulators import emulator as emulators
from orchestrator.errors import BadInput
from orchestrator.progress import StderrNarration


@click.command()
@env_option
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A Terraform variable, e.g. clients=50.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask (for CI).")
@output_option
def deploy(env: str, variables: tuple[str, ...], plan_only: bool, yes: bool) -> Answer:
    """Build the function zip, `terraform plan` an environment, and apply that plan.

    \b
      orchestrator deploy --env local
      orchestrator deploy --env dev --plan
      orchestrator deploy --env prod --yes --var 'shard_counts=[1,4,16,64]'
    """
    terraform.environment_dir(env)
    values = _terraform_variables(env, variables)
    if plan_only:
        terraform.apply(env, values, plan_only=True)
        return {"environment": env, "planned": True}, f"Nothing was changed in {env}."
    if env != "local" and not yes:
        _confirm(env, "apply")
        terraform.apply(env, values, confirm=lambda: click.confirm(f"Apply this to {env}?", abort=True, err=True))
    else:
        terraform.apply(env, values)
    deployment = load_deployment(env)
    return asdict(deployment), _deployment_text(deployment)


@click.command()
@env_option
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A Terraform variable, as for deploy.")
@click.option("--yes", is_flag=True, help="Do not ask (for CI).")
@output_option
def destroy(env: str, variables: tuple[str, ...], yes: bool) -> Answer:
    """`terraform destroy` an environment.

    Where force_destroy is false (staging, prod), it refuses while the bucket holds objects, before it changes anything.

    \b
      orchestrator destroy --env local
      orchestrator destroy --env dev --yes
    """
    terraform.environment_dir(env)
    if env != "local" and not yes:
        _confirm(env, "destroy")
    kept = check_destroyable(env)
    if env != "local" and not yes:
        click.confirm(f"Destroy {env}, with every update and global model in its bucket?", abort=True, err=True)
    terraform.destroy(env, _terraform_variables(env, variables), give_up=kept)
    return {"environment": env, "destroyed": True}, f"{env} is destroyed."


def _confirm(env: str, what: str) -> None:
    if not sys.stdin.isatty():
        raise BadInput(f"Not asking whether to {what} {env} without a terminal. Add --yes.")


def _terraform_variables(env: str, given: tuple[str, ...]) -> dict[str, Any]:
    if env == "local":
        running = emulators.require()
        values: dict[str, Any] = {
            **function_zip.variables(function_zip.target_for(env, running.kind)),
            "aws_endpoint_url": running.url,
        }
    else:
        values = {**function_zip.variables(function_zip.target_for(env))}
    for item in given:
        name, separator, text = item.partition("=")
        if not separator:
            raise BadInput(f"--var {item}: expected NAME=VALUE.")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _deployment_text(deployment: Deployment) -> str:
    lanes = [
        f"  {lane.shards:>5} shards  {lane.memory_mb:>5} MB  {lane.timeout_s:>4} s  {lane.cpu_architecture:<7} "
        f"{lane.function_name}"
        for lane in deployment.lanes.values()
    ]
    lanes += [
        f"  {tree:>12}  {lane.memory_mb:>5} MB  {lane.timeout_s:>4} s  {lane.cpu_architecture:<7} {lane.function_name}"
        for tree, lane in deployment.baselines.items()
    ]
    lanes += [f"  no lane for {tree}: {why}" for tree, why in deployment.baselines_refused.items()]
    return "\n".join([f"{deployment.environment} is deployed: s3://{deployment.bucket}, lanes:", *lanes])


@click.command()
@env_option
@output_option
def build(env: str) -> Answer:
    """Build the function zip of an environment: `lambdas` and numpy for its Python and topology.

    pip gets numpy and, for lambdas/fold.c, a compiler (100 MB, which unpack to 400 while it runs).

    \b
      orchestrator build --env dev
    """
    terraform.environment_dir(env)
    running = emulators.running() if env == "local" else None
    path = function_zip.build(function_zip.target_for(env, running.kind if running else emulators.chosen()))
    size = path.stat().st_size
    return {"path": str(path), "bytes": size}, f"{path} ({size / 1e6:.1f} MB)"


@click.group()
def emulator() -> None:
    """An AWS for your own machine: start, stop, status. It needs neither Docker nor an account."""


@emulator.command("start")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 4566, or a free one where that is taken.")
@output_option
def emulator_start(port: int | None) -> Answer:
    """Start the emulator in the background. Prints where it listens.

    EMULATOR chooses which: ministack (default) or localstack (in Docker, or installed from PyPI where there is none).
    Where AWS_ENDPOINT_URL names one that is already running, that one is used, and nothing is started.

    \b
      orchestrator emulator start
      orchestrator emulator start --port 4599 --output json
      EMULATOR=localstack orchestrator emulator start
    """
    running = emulators.start(port, StderrNarration())
    return asdict(running), f"{running.kind} listens on {running.url}" + (
        f"; log: {running.log}" if running.log else "."
    )


@emulator.command("stop")
@output_option
def emulator_stop() -> Answer:
    """Stop the emulator, and forget what was deployed in it.

    \b
      orchestrator emulator stop
    """
    stopped = emulators.stop()
    return {"stopped": stopped}, "The emulator is stopped." if stopped else "No emulator was running."


@emulator.command("status")
@output_option
def emulator_status() -> Answer:
    """Say whether the emulator runs, and where.

    \b
      orchestrator emulator status
    """
    running = emulators.running()
    text = f"{running.kind} listens on {running.url}." if running else "No emulator is running."
    return asdict(running) if running else None, text


COMMANDS = (deploy, destroy, build, emulator)
