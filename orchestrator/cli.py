"""The command line, `orchestrator`: one thin command per verb. Data on stdout, narration on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lambdas.contract import check_name
from orchestrator import emulator as emulators
from orchestrator import package, terraform, worker
from orchestrator.aws import Clients, connect
from orchestrator.cli_options import Duration, ShardCount, env_option, output_option
from orchestrator.deployment import Deployment, load_deployment
from orchestrator.errors import BadInput
from orchestrator.fetch import fetch
from orchestrator.narration import StderrNarration
from orchestrator.rounds import RoundRequest, list_rounds, round_status, start_round
from orchestrator.submit import WIRE_NAMES, from_file, submit

Answer = tuple[Any, str]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedagg")
@click.option("--verbose", "-v", is_flag=True, help="Log what happens, on stderr.")
def main(verbose: bool) -> None:
    """Serverless federated aggregation by gradient sharding.

    \b
    A first round, on your own machine:
      orchestrator emulator start
      orchestrator deploy --env local
      orchestrator submit model-a.safetensors --round r-1 --client a --examples 1200
      orchestrator submit model-b.pt          --round r-1 --client b --examples 300
      orchestrator start-round --model digits --round r-1 --shards 4 --min-clients 2
      orchestrator fetch --model digits --to global.safetensors

    \b
    Exit statuses: 0 done; 1 any other failure; 2 bad input; 3 not deployed (environment or lane);
    4 quorum missed; 5 the round failed (bad update, shard that gave up); 6 conflict (already published,
    another update of that client); 7 nothing feasible to plan.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.ERROR, format="%(message)s")


def _connect(env: str) -> tuple[Deployment, Clients]:
    terraform.environment_dir(env)
    deployment = load_deployment(env)
    return deployment, connect(deployment.region, deployment.endpoint_url)


# --- infrastructure ------------------------------------------------------------------------------------------------


@main.command()
@env_option
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A Terraform variable, e.g. clients=50.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask (for CI).")
@output_option
def deploy(env: str, variables: tuple[str, ...], plan_only: bool, yes: bool) -> Answer:
    """Build the function zip and `terraform apply` an environment.

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
        terraform.apply(env, values, plan_only=True)
        click.confirm(f"Apply this to {env}?", abort=True, err=True)
    terraform.apply(env, values)
    deployment = load_deployment(env)
    return asdict(deployment), _deployment_text(deployment)


@main.command()
@env_option
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A Terraform variable, as for deploy.")
@click.option("--yes", is_flag=True, help="Do not ask (for CI).")
@output_option
def destroy(env: str, variables: tuple[str, ...], yes: bool) -> Answer:
    """`terraform destroy` an environment.

    \b
      orchestrator destroy --env local
      orchestrator destroy --env dev --yes
    """
    terraform.environment_dir(env)
    if env != "local" and not yes:
        _confirm(env, "destroy")
        click.confirm(f"Destroy {env}, with every update and global model in its bucket?", abort=True, err=True)
    terraform.destroy(env, _terraform_variables(env, variables))
    return {"environment": env, "destroyed": True}, f"{env} is destroyed."


def _confirm(env: str, what: str) -> None:
    if not sys.stdin.isatty():
        raise BadInput(f"Not asking whether to {what} {env} without a terminal. Add --yes.")


def _terraform_variables(env: str, given: tuple[str, ...]) -> dict[str, Any]:
    target = package.target_for(env)
    values: dict[str, Any] = {
        "package_path": str(package.build(target)),
        "runtime": target.runtime,
        "architecture": target.architecture,
    }
    if env == "local":
        running = emulators.running()
        url = os.environ.get("AWS_ENDPOINT_URL") or (running.url if running else None)
        if url is None:
            raise BadInput(
                "No emulator is running. Start one with `orchestrator emulator start`, or set AWS_ENDPOINT_URL."
            )
        values["aws_endpoint_url"] = url
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
        f"  {lane.shards:>5} shards  {lane.memory_mb:>5} MB  {lane.timeout_s:>4} s  {lane.architecture:<7} "
        f"{lane.function_name}"
        for lane in deployment.lanes.values()
    ]
    return "\n".join([f"{deployment.environment} is deployed: s3://{deployment.bucket}, lanes:", *lanes])


@main.command()
@env_option
@output_option
def build(env: str) -> Answer:
    """Build the function zip of an environment: `lambdas` and numpy for its Python and architecture.

    \b
      orchestrator build --env dev
    """
    terraform.environment_dir(env)
    path = package.build(package.target_for(env))
    size = path.stat().st_size
    return {"path": str(path), "bytes": size}, f"{path} ({size / 1e6:.1f} MB)"


@main.group()
def emulator() -> None:
    """The embedded AWS for your own machine: start, stop, status. It needs no Docker and keeps nothing on disk."""


@emulator.command("start")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 4566, or a free one where that is taken.")
@output_option
def emulator_start(port: int | None) -> Answer:
    """Start the emulator in the background. Prints where it listens."""
    running = emulators.start(port)
    return asdict(running), f"The emulator listens on {running.url}; log: {running.log}"


@emulator.command("stop")
@output_option
def emulator_stop() -> Answer:
    """Stop the emulator, and forget what was deployed in it."""
    stopped = emulators.stop()
    return {"stopped": stopped}, "The emulator is stopped." if stopped else "No emulator was running."


@emulator.command("status")
@output_option
def emulator_status() -> Answer:
    """Say whether the emulator runs, and where."""
    running = emulators.running()
    text = f"The emulator listens on {running.url}." if running else "No emulator is running."
    return asdict(running) if running else None, text


# --- clients -------------------------------------------------------------------------------------------------------


@main.command("submit")
@click.argument("file", type=click.Path(path_type=Path))
@env_option
@click.option("--round", "round_id", required=True, help="The round's id.")
@click.option("--client", required=True, help="The client's id: letters, digits, - and _.")
@click.option("--examples", type=int, required=True, help="How many examples the client trained on: its weight.")
@click.option(
    "--wire", type=click.Choice(list(WIRE_NAMES)), help="Store float32 tensors in this dtype: half the bytes."
)
@output_option
def submit_command(file: Path, env: str, round_id: str, client: str, examples: int, wire: str | None) -> Answer:
    """Submit a client's weights: a safetensors file, or a PyTorch state_dict file. Written once.

    \b
      orchestrator submit model.safetensors --round r-1 --client hospital-7 --examples 1203
      orchestrator submit state_dict.pt --env prod --round r-1 --client hospital-7 --examples 1203 --wire bfloat16
    """
    check_name("client id", client)
    check_name("round", round_id)
    tensors = from_file(file)
    deployment, clients = _connect(env)
    wire_dtype = WIRE_NAMES[wire] if wire else None
    result = submit(clients.s3, deployment.bucket, round_id, client, tensors, examples, wire=wire_dtype)
    text = f"Client {client}'s update of {result.nbytes:,} bytes is in round {round_id}"
    return asdict(result), text + ("." if result.created else " already.")


@main.command("fetch")
@env_option
@click.option("--model", required=True, help="The model's name.")
@click.option("--round", "round_id", help="The round whose global model to fetch. Default: the newest.")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), default="global.safetensors", show_default=True)
@output_option
def fetch_command(env: str, model: str, round_id: str | None, to: Path) -> Answer:
    """Fetch a published global model: a safetensors file.

    \b
      orchestrator fetch --model digits --to global.safetensors
      orchestrator fetch --model digits --round r-1
    """
    check_name("model", model)
    if round_id is not None:
        check_name("round", round_id)
    deployment, clients = _connect(env)
    fetched = fetch(clients.s3, deployment.bucket, model, to, round_id=round_id)
    text = f"{fetched.path}: {model} of round {fetched.round_id}, {fetched.nbytes:,} bytes, sha256 {fetched.sha256}"
    return asdict(fetched), text


# --- rounds --------------------------------------------------------------------------------------------------------


@main.command("start-round")
@env_option
@click.option("--model", required=True, help="The model that the round publishes.")
@click.option("--round", "round_id", required=True, help="The round's id; it is opened if need be.")
@click.option(
    "--shards", type=ShardCount(), default="auto", show_default=True, help="Shard count; auto: the planner's."
)
@click.option("--min-clients", type=int, default=1, show_default=True, help="Quorum: the fewest updates to close with.")
@click.option("--expect", type=int, help="Close as soon as so many updates are in. Default: the quorum.")
@click.option("--deadline", type=Duration(), default=0.0, help="How long to wait for updates, e.g. 30m. Default: not.")
@click.option(
    "--timeout", type=Duration(), help="How long to wait without any shard finishing. Default: while the queue tries."
)
@output_option
def start_round_command(
    env: str,
    model: str,
    round_id: str,
    shards: int | None,
    min_clients: int,
    expect: int | None,
    deadline: float,
    timeout: float | None,
) -> Answer:
    """Run a round: wait for updates, average them in shards, publish the global model. Continues one that stopped.

    \b
      orchestrator start-round --model digits --round r-1 --shards 4 --min-clients 8 --deadline 30m
      orchestrator start-round --env prod --model vgg --round 2026-11-23 --min-clients 15 --expect 20 --deadline 1h
    """
    request = RoundRequest(model, round_id, shards, min_clients, expect, deadline, timeout)
    deployment, clients = _connect(env)
    report = start_round(clients, deployment, request, StderrNarration())
    return dict(report.document), report.to_text()


@main.command()
@env_option
@click.option("--round", "round_id", required=True)
@output_option
def status(env: str, round_id: str) -> Answer:
    """Say where a round stands: open, averaging, publishing, published or failed.

    \b
      orchestrator status --round r-1
    """
    check_name("round", round_id)
    deployment, clients = _connect(env)
    document = round_status(clients, deployment.bucket, round_id)
    return document, "\n".join(f"{name:<12} {value}" for name, value in document.items())


@main.command()
@env_option
@click.option("--model", help="Only the rounds of this model.")
@output_option
def rounds(env: str, model: str | None) -> Answer:
    """List the rounds that have not expired.

    \b
      orchestrator rounds --model digits
    """
    deployment, clients = _connect(env)
    found = list_rounds(clients, deployment.bucket, model)
    lines = [
        f"{r['round']:<24} {r['model'] or '-':<16} {r['state']:<12} {r.get('updates', 0):>6} updates "
        f"{r.get('shards', '-'):>6} shards"
        for r in found
    ]
    return found, "\n".join(lines) or "No rounds."


@main.command("worker")
@env_option
@click.option(
    "--shards", type=int, multiple=True, help="Only the lane for this shard count (repeatable). Default: all."
)
@click.option("--idle-exit", type=Duration(), help="Stop when there was no job for so long, e.g. 30s. Default: never.")
@output_option
def worker_command(env: str, shards: tuple[int, ...], idle_exit: float | None) -> Answer:
    """Do the shard jobs on this machine, from the same queues, without Lambda. Start as many as you like.

    \b
      orchestrator worker --env dev --shards 4
      orchestrator worker --idle-exit 30s
    """
    deployment, clients = _connect(env)
    lanes = [deployment.lane(m) for m in shards] or list(deployment.lanes.values())
    narration = StderrNarration()
    narration.say(f"Polling {len(lanes)} lanes of {env}; Ctrl-C stops.")
    try:
        finished = worker.work(
            clients,
            deployment,
            lanes,
            idle_exit_s=idle_exit,
            on_job=lambda done: narration.say(
                "Did a job." if done else "A job failed; its queue will deliver it again."
            ),
        )
    except KeyboardInterrupt:
        return {"stopped": True}, "Stopped. A job that was under way will be delivered again."
    return {"jobs": finished}, f"Did {finished} jobs."


if __name__ == "__main__":
    main()
