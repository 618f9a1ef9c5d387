"""`orchestrator plan`: the predicted time and cost of a round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lambdas.protocol.topologies import TOPOLOGIES
from orchestrator.cli.options import Answer, Duration, output_option
from orchestrator.errors import PlanningError
from orchestrator.planning.question import CPU_ARCHITECTURES, PROFILES, Account, Choices, Question

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan


@click.command("plan")
@click.option("--model-bytes", type=int, required=True, help="Bytes of one client's update.")
@click.option("--clients", type=int, required=True, help="The number of clients that a round averages.")
@click.option("--deadline", "deadline_s", type=Duration(), help="Recommend the cheapest that meets this, e.g. 60s.")
@click.option("--budget", "budget_usd", type=float, help="The most that a round may cost, US dollars.")
@click.option(
    "--shards",
    "shard_counts",
    type=int,
    multiple=True,
    help="Only these shard counts (repeatable). Default: powers of two.",
)
@click.option(
    "--memory", "memories_mb", type=int, multiple=True, help="Only these function memories in MB (repeatable)."
)
@click.option(
    "--topology", "topologies", type=click.Choice(TOPOLOGIES), multiple=True, help="Only these topologies (repeatable)."
)
@click.option(
    "--cpu-architecture",
    "cpu_architectures",
    type=click.Choice(CPU_ARCHITECTURES),
    multiple=True,
    help="Only these CPU architectures of the function (repeatable).",
)
@click.option(
    "--memory-cap", "memory_cap_mb", type=int, default=3008, help="The maximum memory of a function in the account, MB."
)
@click.option(
    "--account-concurrency", type=int, help="The maximum number of concurrent functions. Default: the profile's."
)
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default="streaming",
    help="streaming: this project's worker. whole-object: the paper's handler and trees.",
)
@click.option("--all", "show_all", is_flag=True, help="Print every configuration, not only the best per shard count.")
@click.option(
    "--chart", type=click.Path(path_type=Path, dir_okay=False), help="Also draw seconds and dollars: .png or .svg."
)
@output_option
def plan_command(show_all: bool, chart: Path | None, **asked: Any) -> Answer:
    """Predict the time and cost of a round.

    Prints every configuration that could run the round and marks the cheapest, the fastest and the recommended one.
    Needs no AWS account.

    \b
      orchestrator plan --model-bytes 537206056 --clients 20
      orchestrator plan --model-bytes 537206056 --clients 20 --deadline 60s --output json
      orchestrator plan --model-bytes 537206056 --clients 20 --profile whole-object --chart plan.png
    """
    from orchestrator.planning.chart import write_chart
    from orchestrator.planning.plan import format_table

    plans = _plans(**asked)
    if not any(p.feasible for p in plans):
        fastest = min(plans, key=lambda p: p.predicted_seconds)
        raise PlanningError(
            f"Nothing is feasible. The fastest is {fastest.topology}, {fastest.shards} shards, {fastest.memory_mb} "
            f"MB: {fastest.reason} `--output json` lists every configuration with its reason.",
            {"plans": [p.to_json() for p in plans]},
        )
    if chart is not None:
        write_chart(plans, chart)
    return [p.to_json() for p in plans], format_table(plans, best_only=not show_all)


def _plans(
    model_bytes: int, clients: int, deadline_s: float | None, budget_usd: float | None, profile: str, **choices: Any
) -> list[Plan]:
    """Ask the planner."""
    from orchestrator.planning.planner import plan_round

    account = Account(choices.pop("memory_cap_mb"), choices.pop("account_concurrency"))
    chosen = {name: values for name, values in choices.items() if values}
    return plan_round(Question(model_bytes, clients, profile, deadline_s, budget_usd, account), Choices(**chosen))
