"""`orchestrator plan`: what a round would take and cost."""

from __future__ import annotations

from pathlib import Path

import click

from lambdas.protocol.topologies import TOPOLOGIES
from orchestrator.cli.options import Answer, Duration, output_option
from orchestrator.errors import PlanningError
from orchestrator.planning.chart import write_chart
from orchestrator.planning.plan import format_table
from orchestrator.planning.planner import plan_round
from orchestrator.planning.question import CPU_ARCHITECTURES, PROFILES, Account, Choices, Question


@click.command()
@click.option("--model-bytes", type=int, required=True, help="Bytes of one client's update.")
@click.option("--clients", type=int, required=True, help="How many clients a round averages.")
@click.option("--deadline", type=Duration(), help="Recommend the cheapest that is done by then, e.g. 60s.")
@click.option("--budget", type=float, help="Recommend within so many dollars a round.")
@click.option("--shards", type=int, multiple=True, help="Only these shard counts (repeatable). Default: powers of two.")
@click.option("--memory", type=int, multiple=True, help="Only these function memories in MB (repeatable).")
@click.option("--topology", type=click.Choice(TOPOLOGIES), multiple=True, help="Only these (repeatable).")
@click.option("--cpu", type=click.Choice(CPU_ARCHITECTURES), multiple=True, help="Only these processors (repeatable).")
@click.option("--memory-cap", type=int, default=3008, show_default=True, help="Most memory the account allows, MB.")
@click.option("--account-concurrency", type=int, help="Most functions at once. Default: the profile's.")
@click.option(
    "--profile", type=click.Choice(PROFILES), default="streaming", show_default=True,
    help="streaming: this kit's worker. whole-object: the paper's handler and trees.",
)  # fmt: skip
@click.option("--all", "show_all", is_flag=True, help="Print every configuration, not the best of each shard count.")
@click.option(
    "--chart", type=click.Path(path_type=Path, dir_okay=False), help="Also draw seconds and dollars: .png or .svg."
)
@output_option
def plan(
    model_bytes: int,
    clients: int,
    deadline: float | None,
    budget: float | None,
    shards: tuple[int, ...],
    memory: tuple[int, ...],
    topology: tuple[str, ...],
    cpu: tuple[str, ...],
    memory_cap: int,
    account_concurrency: int | None,
    profile: str,
    show_all: bool,
    chart: Path | None,
) -> Answer:
    """Predict seconds and dollars of a round for every configuration that could run it. Needs no AWS.

    \b
      orchestrator plan --model-bytes 537206056 --clients 20
      orchestrator plan --model-bytes 537206056 --clients 20 --deadline 60s --output json
      orchestrator plan --model-bytes 537206056 --clients 20 --profile whole-object --chart plan.png
    """
    account = Account(memory_cap, account_concurrency)
    plans = plan_round(
        Question(model_bytes, clients, profile, deadline, budget, account),
        Choices(shards or None, memory or None, cpu or CPU_ARCHITECTURES, topology or TOPOLOGIES),
    )
    if not any(p.feasible for p in plans):
        fastest = min(plans, key=lambda p: p.predicted_seconds)
        raise PlanningError(
            f"Nothing is feasible. The fastest is {fastest.topology}, {fastest.shards} shards, {fastest.memory_mb} "
            f"MB: {fastest.reason} `--output json` lists all with their reasons.",
            {"plans": [p.to_json() for p in plans]},
        )
    if chart is not None:
        write_chart(plans, chart)
    return [p.to_json() for p in plans], format_table(plans, best_only=not show_all)
