"""The command line, `orchestrator`: a table of its commands, which are imported when they are used.

Data goes to stdout, narration and errors to stderr. Nothing that this module imports may import boto3, numpy or
python-terraform: `orchestrator --help` must not wait for them.
"""

from __future__ import annotations

import logging
import sys

import click

from orchestrator.cli.group import CommandGroup, Entry

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_ROOM = "orchestrator.cli"
SECTIONS = {
    "Clients": {
        "submit": Entry(f"{_ROOM}.clients:submit_command", "Submit a client's update to a round."),
        "fetch": Entry(f"{_ROOM}.clients:fetch_command", "Fetch a published global model."),
        "invite": Entry(f"{_ROOM}.clients:invite_command", "Invite clients that have no AWS credentials to a round."),
    },
    "Rounds": {
        "start-round": Entry(f"{_ROOM}.rounds:start_round_command", "Run a round, or continue one that stopped."),
        "resume": Entry(f"{_ROOM}.rounds:resume_command", "Continue a round with the options it was opened with."),
        "abort": Entry(f"{_ROOM}.rounds:abort_command", "Stop a round without publishing it."),
        "status": Entry(f"{_ROOM}.rounds:status_command", "Show the state of a round."),
        "rounds": Entry(f"{_ROOM}.rounds:rounds_command", "List the rounds that have not expired."),
        "report": Entry(f"{_ROOM}.rounds:report_command", "Print the report of a round that has ended."),
        "verify": Entry(f"{_ROOM}.verify:verify_command", "Verify a published global model byte for byte."),
    },
    "Environments": {
        "deploy": Entry(f"{_ROOM}.deploy:deploy_command", "Build the function zip and deploy an environment."),
        "show-deployment": Entry(
            f"{_ROOM}.deploy:show_deployment_command", "Print the deployment file of an environment."
        ),
        "destroy": Entry(f"{_ROOM}.deploy:destroy_command", "Destroy an environment."),
        "build": Entry(f"{_ROOM}.deploy:build_command", "Build the function zip of an environment."),
        "emulator": Entry(f"{_ROOM}.emulator:emulator", "Run an AWS emulator on this machine."),
        "worker": Entry(f"{_ROOM}.worker:worker_command", "Process an environment's jobs on this machine."),
    },
    "Planning": {
        "plan": Entry(f"{_ROOM}.plan:plan_command", "Predict the time and cost of a round."),
        "compare": Entry(f"{_ROOM}.compare:compare_command", "Run the same round in all three topologies."),
    },
}


@click.group(cls=CommandGroup, sections=SECTIONS, context_settings=_CONTEXT)
@click.version_option(package_name="fedagg")
@click.option("--verbose", "-v", is_flag=True, help="Log on stderr.")
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

    `orchestrator COMMAND --help` describes a command and shows examples.

    \b
    Exit statuses: 0 success; 1 any other failure; 2 bad input; 3 not deployed (environment or lane);
    4 quorum missed; 5 the round failed (bad update, or a shard out of tries); 6 conflict (already
    published, another update of that client); 7 nothing feasible to plan; 8 the round was aborted;
    9 a link of a round's SHA-256 chain does not hold (verify).
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.ERROR, format="%(message)s")
