"""The commands that run rounds and show them: start-round, resume, abort, status, rounds and report."""

from __future__ import annotations

from typing import Any

import click

from lambdas.protocol.keys import check_name
from lambdas.protocol.limits import MAX_EXAMPLES
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES
from orchestrator.cli.options import (
    Answer,
    ClientList,
    Duration,
    Quorum,
    ShardCount,
    Where,
    bucket_of,
    connect_to,
    deployment_options,
    output_option,
    round_option,
)
from orchestrator.progress import StderrNarration
from orchestrator.rounds.choices import ON_DEADLINE, ON_INVALID

_timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    help="How long to wait for the next shard to finish. Default: as long as the queue delivers its jobs again.",
)


# The options' parameters are the fields of RoundRequest, except the quorum, which sets two fields.
@click.command("start-round")
@deployment_options
@click.option("--model", required=True, help="The model that the round publishes.")
@click.option("--round", "round_id", required=True, help="The round's id. The round is opened if it does not exist.")
@click.option(
    "--shards",
    type=ShardCount(),
    default="auto",
    help="Shard count. auto: the planner chooses among the deployed lanes.",
)
@click.option(
    "--topology",
    type=click.Choice(TOPOLOGIES),
    default=GRADS_SHARDING,
    help="Average in shards, or in a tree whose functions hold the whole model (deployed with baselines = true).",
)
@click.option(
    "--min-clients",
    "quorum",
    type=Quorum(),
    default=1,
    help="Quorum: the number of updates that the round needs, or a share (0.8, 80%) of the expected clients.",
)
@click.option("--expect", type=int, help="Close as soon as this many updates are stored. Default: the quorum.")
@click.option(
    "--expect-clients",
    type=ClientList(),
    help="The clients of the round: a file with one id per line, or a,b,c. Updates of others are left out.",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=Duration(),
    default=0.0,
    show_default=False,
    help="How long to wait for updates after the round is opened, e.g. 30m. Default: do not wait.",
)
@click.option(
    "--on-deadline",
    type=click.Choice(ON_DEADLINE),
    default="fail",
    help="Below the quorum at the deadline: fail with exit status 4, or extend the deadline.",
)
@click.option(
    "--extend",
    "extend_s",
    type=Duration(),
    help="The time that an extension adds to the deadline. Default: the first wait.",
)
@click.option("--max-extensions", type=int, default=3, help="The maximum number of extensions.")
@click.option(
    "--on-invalid",
    type=click.Choice(ON_INVALID),
    default="fail",
    help="On an update that cannot be averaged: fail the round (exit status 5), or exclude the client from it.",
)
@click.option(
    "--max-norm", type=float, help="The maximum L2 norm of an update; a larger one is invalid. Default: no maximum."
)
@click.option(
    "--max-examples",
    type=int,
    default=MAX_EXAMPLES,
    help="The maximum example count of an update; a larger one is invalid.",
)
@click.option(
    "--late-from",
    metavar="ROUND",
    help="Also average the late updates of this earlier round, of clients that submitted nothing newer.",
)
@_timeout_option
@click.option(
    "--replace-options",
    is_flag=True,
    help="If the round is open with other options, replace them. The deadline starts again.",
)
@output_option
def start_round_command(
    where: Where, quorum: tuple[int, float | None], replace_options: bool, **request: Any
) -> Answer:
    """Run a round, or continue one that stopped.

    Waits for updates, averages them in shards, publishes the global model and prints the report.

    \b
      orchestrator start-round --model digits --round r-1 --shards 4 --min-clients 8 --deadline 30m
      orchestrator start-round --env prod --model vgg --round 2026-11-23 --min-clients 15 --expect 20 --deadline 1h
      orchestrator start-round --model digits --round r-2 --expect-clients a,b,c,d --min-clients 75% --deadline 1h \\
        --on-deadline extend --extend 15m --on-invalid exclude --max-norm 1000 --late-from r-1
      orchestrator start-round --model digits --round r-3 --topology lifl
    """
    from orchestrator.rounds.request import RoundRequest
    from orchestrator.rounds.start import start_round

    count, share = quorum
    asked = RoundRequest(min_clients=count, min_fraction=share, **request)
    deployment, aws = connect_to(where)
    report = start_round(aws, deployment, asked, StderrNarration(), replace_options=replace_options)
    return dict(report.document), report.to_text()


@click.command("resume")
@deployment_options
@round_option
@click.option("--redrive", is_flag=True, help="Also queue again the shards whose every try failed.")
@_timeout_option
@output_option
def resume_command(where: Where, round_id: str, redrive: bool, timeout_s: float | None) -> Answer:
    """Continue a round with the options it was opened with.

    Shards that are already stored are not recomputed. If another process coordinates the round, waits for its result.

    \b
      orchestrator resume --round r-1
      orchestrator resume --round r-1 --redrive
    """
    from orchestrator.rounds.start import resume_round

    deployment, aws = connect_to(where)
    report = resume_round(aws, deployment, round_id, redrive=redrive, timeout_s=timeout_s, narration=StderrNarration())
    return dict(report.document), report.to_text()


@click.command("abort")
@deployment_options
@round_option
@output_option
def abort_command(where: Where, round_id: str) -> Answer:
    """Stop a round without publishing it.

    Its jobs are dropped and its stored shards are deleted. A start-round or resume that coordinates the round, or waits
    for it, ends with exit status 8.

    \b
      orchestrator abort --round r-1
    """
    from orchestrator.rounds.abort import abort_round

    report = abort_round(bucket_of(where), round_id)
    return dict(report.document), report.to_text()


@click.command("status")
@deployment_options
@round_option
@output_option
def status_command(where: Where, round_id: str) -> Answer:
    """Show the state of a round.

    The state is not opened, open, averaging, publishing, published, failed or aborted. Also shows which process
    coordinates the round.

    \b
      orchestrator status --round r-1
    """
    from orchestrator.rounds.status import round_status

    check_name("round", round_id)
    deployment, aws = connect_to(where)
    document = round_status(aws, aws.bucket(deployment.bucket), round_id, deployment)
    return document, "\n".join(f"{name:<12} {value}" for name, value in document.items())


@click.command("rounds")
@deployment_options
@click.option("--model", help="Only the rounds of this model.")
@output_option
def rounds_command(where: Where, model: str | None) -> Answer:
    """List the rounds that have not expired.

    \b
      orchestrator rounds
      orchestrator rounds --model digits
    """
    from orchestrator.rounds.status import list_rounds

    deployment, aws = connect_to(where)
    found = list_rounds(aws, aws.bucket(deployment.bucket), model)
    lines = [
        f"{r['round']:<24} {r['model'] or '-':<16} {r['state']:<12} {r.get('updates', 0):>6} updates "
        f"{r.get('shards', '-'):>6} shards"
        for r in found
    ]
    lines += [r["error"] for r in found if r["state"] == "unreadable"]
    return found, "\n".join(lines) or "No rounds."


@click.command("report")
@deployment_options
@round_option
@output_option
def report_command(where: Where, round_id: str) -> Answer:
    """Print the report of a round that has ended.

    The report names the clients that were averaged or left out, the time, the requests and the digests.

    \b
      orchestrator report --round r-1
      orchestrator report --round r-1 --output json
    """
    from orchestrator.rounds.status import read_report

    found = read_report(bucket_of(where), check_name("round", round_id))
    return dict(found.document), found.to_text()
