"""The command line, `orchestrator`: a table of its commands, which are imported when they are used.

Data goes to stdout, narration and errors to stderr. Nothing that this module imports may import boto3, numpy or
python-terraform: `orchestrator --help` must not wait for them.
"""

from __future__ import annotations

import logging
import sys

import click

from orchestrator.cli.group import CommandGroup

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}
SECTIONS = {
    "Clients": {
        "submit": ("clients", "Submit a client's update to a round."),
        "fetch": ("clients", "Fetch a published global model."),
        "invite": ("clients", "Invite clients that have no AWS credentials to a round."),
    },
    "Rounds": {
        "start-round": ("rounds", "Run a round, or continue one that stopped."),
        "resume": ("rounds", "Continue a round with the options it was opened with."),
        "abort": ("rounds", "Stop a round without publishing it."),
        "status": ("rounds", "Show the state of a round."),
        "rounds": ("rounds", "List the rounds that have not expired."),
        "report": ("rounds", "Print the report of a round that has ended."),
        "verify": ("verify", "Verify a published global model byte for byte."),
    },
    "Environments": {
        "deploy": ("deploy", "Build the function zip and deploy an environment."),
        "show-deployment": ("deploy", "Print the deployment file of an environment."),
        "destroy": ("deploy", "Destroy an environment."),
        "build": ("deploy", "Build the function zip of an environment."),
        "emulator": ("emulator", "Run an AWS emulator on this machine."),
        "worker": ("worker", "Process an environment's jobs on this machine."),
    },
    "Planning": {
        "plan": ("plan", "Predict the time and cost of a round."),
        "compare": ("compare", "Run the same round in all three topologies."),
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
