"""`orchestrator worker`: the functions' work on this machine."""

from __future__ import annotations

import os

import click

from lambdas.protocol.topologies import TREES
from orchestrator.cli.options import Answer, Duration, Where, connect_to, deployment_options, output_option
from orchestrator.progress import StderrNarration


@click.command("worker")
@deployment_options
@click.option(
    "--shards", type=int, multiple=True, help="Only the lane for this shard count (repeatable). Default: all lanes."
)
@click.option(
    "--topology",
    type=click.Choice(TREES),
    multiple=True,
    help="Only the lane of this tree (repeatable). Default: all lanes.",
)
@click.option(
    "--shared-memory", is_flag=True, help="Keep LIFL's partial sums in this machine's memory instead of in S3."
)
@click.option(
    "--processes", type=click.IntRange(1), help="With --shared-memory: number of processes. Default: one per core."
)
@click.option(
    "--idle-exit", type=Duration(), help="Stop after this long without a job, e.g. 30s. Default: do not stop."
)
@output_option
def worker_command(
    where: Where,
    shards: tuple[int, ...],
    topology: tuple[str, ...],
    shared_memory: bool,
    processes: int | None,
    idle_exit: float | None,
) -> Answer:
    """Process an environment's jobs on this machine.

    Reads the same queues as the Lambda functions. Any number of workers and functions can run at the same time.

    \b
      orchestrator worker --env dev --shards 4
      orchestrator worker --idle-exit 30s
      orchestrator worker --topology lifl --shared-memory --processes 4
    """
    from orchestrator.workers import poll
    from orchestrator.workers.shared_memory import work_together

    deployment, aws = connect_to(where)
    lanes = [deployment.lane(m) for m in shards] + [deployment.lane_for(tree, 1) for tree in topology]
    lanes = lanes or deployment.all_lanes
    narration = StderrNarration()
    narration.say(f"Polling {len(lanes)} lanes of {deployment.environment}; Ctrl-C stops.")

    def on_job(done: bool) -> None:
        narration.say("Did a job." if done else "A job failed; its queue will deliver it again.")

    try:
        if shared_memory:
            count = processes or os.cpu_count() or 1
            work_together(aws, deployment, lanes, processes=count, idle_exit_s=idle_exit)
            return {"processes": count}, f"{count} processes have ended."
        finished = poll.work(aws, deployment, lanes, idle_exit_s=idle_exit, on_job=on_job)
    except KeyboardInterrupt:
        return {"stopped": True}, "Stopped. The queue delivers an unfinished job again."
    return {"jobs": finished}, f"Did {finished} jobs."
