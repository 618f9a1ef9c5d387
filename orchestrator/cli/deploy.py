"""The commands that deploy, show and destroy an environment, and build its function zip."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import Answer, env_option, output_option
from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.aws.deployment import Deployment

_variables_option = click.option(
    "--var", "variables", multiple=True, metavar="NAME=VALUE",
    help="A Terraform variable, e.g. clients=50 (repeatable).",
)  # fmt: skip
_yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation (for CI).")


@click.command("deploy")
@env_option
@_variables_option
@click.option("--plan", "plan_only", is_flag=True, help="Show the changes and do not apply them.")
@_yes_option
@output_option
def deploy_command(env: str, variables: tuple[str, ...], plan_only: bool, yes: bool) -> Answer:
    """Build the function zip and deploy an environment.

    Runs `terraform plan` and applies that plan. For an environment on AWS, first asks for confirmation. Then writes the
    deployment file, with which other commands need neither Terraform nor a checkout (--deployment).

    \b
      orchestrator deploy --env local
      orchestrator deploy --env dev --plan
      orchestrator deploy --env prod --yes --var 'shard_counts=[1,4,16,64]'
    """
    from orchestrator.deployment import load, terraform
    from orchestrator.deployment.file import save_deployment_file

    terraform.environment_dir(env)
    values = _terraform_variables(env, variables)
    if plan_only:
        terraform.apply(env, values, plan_only=True)
        return {"environment": env, "planned": True}, f"Nothing was changed in {env}."
    if env != "local" and not yes:
        _require_terminal(env, "apply")
        terraform.apply(env, values, confirm=lambda: click.confirm(f"Apply this to {env}?", abort=True, err=True))
    else:
        terraform.apply(env, values)
    deployment = load.load_deployment(env)
    path = terraform.deployment_file(env)
    save_deployment_file(deployment, path)
    return asdict(deployment), f"{_deployment_text(deployment)}\nDeployment file: {path}"


@click.command("show-deployment")
@env_option
@output_option
def show_deployment_command(env: str) -> Answer:
    """Print the deployment file of an environment.

    Reads it from Terraform's state, also where somebody else deployed the environment. It is the file that
    `orchestrator deploy` writes, and has no secrets. Redirect it to a file, and pass that to other commands as
    --deployment.

    \b
      orchestrator show-deployment --env prod
    """
    from orchestrator.deployment import load

    text = load.load_deployment(env).to_json()
    return json.loads(text), text


@click.command("destroy")
@env_option
@_variables_option
@_yes_option
@output_option
def destroy_command(env: str, variables: tuple[str, ...], yes: bool) -> Answer:
    """Destroy an environment.

    Runs `terraform destroy`. Every update and global model in the environment's bucket is deleted.

    If force_destroy is false (staging, prod) and the bucket holds objects, fails before it changes anything.

    \b
      orchestrator destroy --env local
      orchestrator destroy --env dev --yes
    """
    from orchestrator.deployment import terraform
    from orchestrator.deployment.protection import check_destroyable

    terraform.environment_dir(env)
    if env != "local" and not yes:
        _require_terminal(env, "destroy")
    kept = check_destroyable(env)
    if env != "local" and not yes:
        click.confirm(f"Destroy {env}, with every update and global model in its bucket?", abort=True, err=True)
    terraform.destroy(env, _terraform_variables(env, variables), give_up=kept)
    terraform.deployment_file(env).unlink(missing_ok=True)
    return {"environment": env, "destroyed": True}, f"{env} is destroyed."


@click.command("build")
@env_option
@output_option
def build_command(env: str) -> Answer:
    """Build the function zip of an environment.

    The zip holds `lambdas` and numpy for the environment's Python and CPU architecture. pip downloads numpy and, to
    compile lambdas/averaging/fold.c, a compiler (100 MB, 400 MB unpacked while it runs).

    \b
      orchestrator build --env dev
    """
    from orchestrator.deployment import function_zip, terraform
    from orchestrator.emulators import emulator

    terraform.environment_dir(env)
    running = emulator.running() if env == "local" else None
    path = function_zip.build(function_zip.target_for(env, running.kind if running else emulator.chosen()))
    size = path.stat().st_size
    return {"path": str(path), "bytes": size}, f"{path} ({size / 1e6:.1f} MB)"


def _require_terminal(env: str, action: str) -> None:
    """Raise BadInput if there is no terminal on which the user can confirm."""
    if not sys.stdin.isatty():
        raise BadInput(f"Cannot ask for confirmation to {action} {env} without a terminal. Add --yes.")


def _terraform_variables(env: str, given: tuple[str, ...]) -> dict[str, Any]:
    """The variables for Terraform: the function zip's, the emulator's URL, and those of --var, parsed as JSON."""
    from orchestrator.deployment import function_zip
    from orchestrator.emulators import emulator

    running = emulator.require() if env == "local" else None
    target = function_zip.target_for(env, running.kind) if running else function_zip.target_for(env)
    values: dict[str, Any] = {**function_zip.variables(target)}
    if running:
        values["aws_endpoint_url"] = running.url
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
    """The bucket, and a line per lane."""
    named = [(f"  {m:>5} shards", lane) for m, lane in deployment.lanes.items()]
    named += [(f"  {tree:>12}", lane) for tree, lane in deployment.baselines.items()]
    lines = [
        f"{name}  {lane.memory_mb:>5} MB  {lane.timeout_s:>4} s  {lane.cpu_architecture:<7} {lane.function_name}"
        for name, lane in named
    ]
    lines += [f"  no lane for {tree}: {why}" for tree, why in deployment.baselines_refused.items()]
    return "\n".join([f"{deployment.environment} is deployed: s3://{deployment.bucket}, lanes:", *lines])
