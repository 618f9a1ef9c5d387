"""The command line, `orchestrator`: one thin command per verb. Data on stdout, narration on stderr."""

from __future__ import annotations

import logging
import os
import sys

import click

from lambdas.protocol.keys import check_name
from lambdas.protocol.limits import MAX_EXAMPLES
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES, TREES
from orchestrator.cli import clients, compare, deploy, plan, verify
from orchestrator.cli.options import (
    Answer,
    ClientList,
    Commands,
    Duration,
    Quorum,
    ShardCount,
    connect_to,
    env_option,
    output_option,
)
from orchestrator.progress import StderrNarration
from orchestrator.rounds.abort import abort_round
from orchestrator.rounds.request import ON_DEADLINE, ON_INVALID, RoundRequest
from orchestrator.rounds.start import resume_round, start_round
from orchestrator.rounds.status import list_rounds, read_report, round_status
from orchestrator.workers import poll
from orchestrator.workers.shared_memory import work_together


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
    another update of that client); 7 nothing feasible to plan; 8 the round was aborted; 9 a round's SHA-256
    chain is broken (verify).
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.ERROR, format="%(message)s")


for command in (
    *clients.COMMANDS,
    *deploy.COMMANDS,
    plan.plan,
    compare.compare_command,
    verify.verify_command,
):
    main.add_command(command)


# --- rounds --------------------------------------------------------------------------------------------------------


@main.command("start-round")
@env_option
@click.option("--model", required=True, help="The model that the round publishes.")
@click.option("--round", "round_id", required=True, help="The round's id; it is opened if need be.")
@click.option(
    "--shards", type=ShardCount(), default="auto", show_default=True, help="Shard count; auto: the planner's."
)
@click.option(
    "--topology",
    type=click.Choice(TOPOLOGIES),
    default=GRADS_SHARDING,
    show_default=True,
    help="Average by shards, or by a tree whose functions hold the whole model (deployed with baselines = true).",
)
@click.option(
    "--min-clients",
    type=Quorum(),
    default=1,
    show_default=True,
    help="Quorum: the fewest updates to close with, as a number, or as a share (0.8, 80%) of the expected clients.",
)
@click.option("--expect", type=int, help="Close as soon as so many updates are in. Default: the quorum.")
@click.option(
    "--expect-clients",
    type=ClientList(),
    help="The clients that the round is for, in a file, one on a line, or as a,b,c. Others are left out.",
)
@click.option(
    "--deadline",
    type=Duration(),
    default=0.0,
    help="How long to wait for updates, from the opening of the round, e.g. 30m. Default: not.",
)
@click.option(
    "--on-deadline",
    type=click.Choice(ON_DEADLINE),
    default="fail",
    show_default=True,
    help="Below the quorum at the deadline: fail with exit status 4, or extend it.",
)
@click.option("--extend", type=Duration(), help="By how much to extend the deadline at a time. Default: as long again.")
@click.option("--max-extensions", type=int, default=3, show_default=True, help="How often to extend it.")
@click.option(
    "--on-invalid",
    type=click.Choice(ON_INVALID),
    default="fail",
    show_default=True,
    help="With an update that cannot be averaged: fail the round (status 5), or exclude the client from all of it.",
)
@click.option("--max-norm", type=float, help="The largest L2 norm of an update; a larger one is invalid. Default: any.")
@click.option(
    "--max-examples",
    type=int,
    default=MAX_EXAMPLES,
    show_default=True,
    help="The largest example count that is believed; a larger one is invalid.",
)
@click.option(
    "--late-from",
    metavar="ROUND",
    help="Take over the late updates of this earlier round, of clients who submit nothing newer.",
)
@click.option(
    "--timeout", type=Duration(), help="How long to wait without any shard finishing. Default: while the queue tries."
)
@click.option(
    "--replace-options",
    is_flag=True,
    help="Where the round is open with other options, take these; its deadline counts anew.",
)
@output_option
def start_round_command(
    env: str,
    model: str,
    round_id: str,
    shards: int | None,
    topology: str,
    min_clients: tuple[int, float | None],
    expect: int | None,
    expect_clients: tuple[str, ...] | None,
    deadline: float,
    on_deadline: str,
    extend: float | None,
    max_extensions: int,
    on_invalid: str,
    max_norm: float | None,
    max_examples: int,
    late_from: str | None,
    timeout: float | None,
    replace_options: bool,
) -> Answer:
    """Run a round: wait for updates, average them in shards, publish the global model. Continues one that stopped.

    \b
      orchestrator start-round --model digits --round r-1 --shards 4 --min-clients 8 --deadline 30m
      orchestrator start-round --env prod --model vgg --round 2026-11-23 --min-clients 15 --expect 20 --deadline 1h
      orchestrator start-round --model digits --round r-2 --expect-clients a,b,c,d --min-clients 75% --deadline 1h
        --on-deadline extend --extend 15m --on-invalid exclude --max-norm 1000 --late-from r-1
      orchestrator start-round --model digits --round r-3 --topology lifl
    """
    request = RoundRequest(
        model=model,
        round_id=round_id,
        shards=shards,
        topology=topology,
        min_clients=min_clients[0],
        min_fraction=min_clients[1],
        expect=expect,
        expect_clients=expect_clients,
        deadline_s=deadline,
        on_deadline=on_deadline,
        extend_s=extend,
        max_extensions=max_extensions,
        on_invalid=on_invalid,
        max_norm=max_norm,
        max_examples=max_examples,
        late_from=late_from,
        timeout_s=timeout,
    )
    deployment, aws = connect_to(env)
    report = start_round(aws, deployment, request, StderrNarration(), replace_options=replace_options)
    return dict(report.document), report.to_text()


@main.command("resume")
@env_option
@click.option("--round", "round_id", required=True, help="The round's id.")
@click.option("--redrive", is_flag=True, help="Also queue again the shards whose every try failed.")
@click.option(
    "--timeout", type=Duration(), help="How long to wait without any shard finishing. Default: while the queue tries."
)
@output_option
def resume_command(env: str, round_id: str, redrive: bool, timeout: float | None) -> Answer:
    """Continue a round that stopped, or wait for the process that drives it. Shards that are stored stay stored.

    \b
      orchestrator resume --round r-1
      orchestrator resume --round r-1 --redrive
    """
    deployment, aws = connect_to(env)
    report = resume_round(
        aws, deployment, round_id, redrive=redrive, timeout_s=timeout, narration=StderrNarration()
    )  # fmt: skip
    return dict(report.document), report.to_text()


@main.command("abort")
@env_option
@click.option("--round", "round_id", required=True, help="The round's id.")
@output_option
def abort_command(env: str, round_id: str) -> Answer:
    """Stop a round for good: nothing of it is published, its jobs are dropped, its shards are removed.

    A start-round or resume that drives it, or waits for it, ends with exit status 8.

    \b
      orchestrator abort --round r-1
    """
    deployment, aws = connect_to(env)
    report = abort_round(aws.bucket(deployment.bucket), round_id)
    return dict(report.document), report.to_text()


@main.command("report")
@env_option
@click.option("--round", "round_id", required=True, help="The round's id.")
@output_option
def report_command(env: str, round_id: str) -> Answer:
    """Print the report of a round that has ended: who took part, who was left out and why, what it took.

    \b
      orchestrator report --round r-1
      orchestrator report --round r-1 --output json
    """
    deployment, aws = connect_to(env)
    found = read_report(aws.bucket(deployment.bucket), check_name("round", round_id))
    return dict(found.document), found.to_text()


@main.command()
@env_option
@click.option("--round", "round_id", required=True)
@output_option
def status(env: str, round_id: str) -> Answer:
    """Say where a round stands: open, averaging, publishing, published, failed or aborted; and who drives it.

    \b
      orchestrator status --round r-1
    """
    check_name("round", round_id)
    deployment, aws = connect_to(env)
    document = round_status(aws, aws.bucket(deployment.bucket), round_id, deployment)
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
    deployment, aws = connect_to(env)
    found = list_rounds(aws, aws.bucket(deployment.bucket), model)
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
@click.option(
    "--topology", type=click.Choice(TREES), multiple=True, help="Only this tree's lane (repeatable). Default: all."
)
@click.option(
    "--shared-memory", is_flag=True, help="LIFL's partial sums stay in this machine's memory instead of going to S3."
)
@click.option("--processes", type=click.IntRange(1), help="With --shared-memory: how many. Default: one per core.")
@click.option("--idle-exit", type=Duration(), help="Stop when there was no job for so long, e.g. 30s. Default: never.")
@output_option
def worker_command(
    env: str,
    shards: tuple[int, ...],
    topology: tuple[str, ...],
    shared_memory: bool,
    processes: int | None,
    idle_exit: float | None,
) -> Answer:
    """Do the shard jobs on this machine, from the same queues, without Lambda. Start as many as you like.

    \b
      orchestrator worker --env dev --shards 4
      orchestrator worker --idle-exit 30s
      orchestrator worker --topology lifl --shared-memory --processes 4
    """
    deployment, aws = connect_to(env)
    lanes = [deployment.lane(m) for m in shards] + [deployment.lane_for(tree, 1) for tree in topology]
    lanes = lanes or deployment.all_lanes
    narration = StderrNarration()
    narration.say(f"Polling {len(lanes)} lanes of {env}; Ctrl-C stops.")
    try:
        if shared_memory:
            count = processes or os.cpu_count() or 1
            work_together(aws, deployment, lanes, processes=count, idle_exit_s=idle_exit)
            return {"processes": count}, f"{count} processes are done."
        finished = poll.work(
            aws,
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
