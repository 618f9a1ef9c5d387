"""`make test-aws`: the end-to-end tests against an AWS account, once somebody has said which account that is.

Nothing is asked of AWS before it has been said what will be created and what that may cost. The tests run in a
Terraform workspace of their own in the environment's own backend, under names that no deployment uses.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import boto3
import click

from lambdas.protocol.errors import FederationError
from lambdas.protocol.topologies import TREES
from orchestrator.deployment.terraform import environment_dir, run_terraform
from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.paths import ROOT
from orchestrator.planning.planner import predict
from orchestrator.planning.question import Configuration, Question
from tests.support.deployed import CLIENTS, MODEL_BYTES, SHARD_COUNTS

# More rounds than the tests run, each taken for one of all clients, and an hour of everything that is billed by time.
_ROUNDS = 30
# CloudWatch pricing, standard-resolution alarms: $0.10 a month each; infra/monitoring has three per lane.
_ALARM_USD_PER_HOUR = 0.10 / 730
# AWS KMS pricing: $1 a month per customer key; one that waits for its deletion costs nothing.
_KEY_USD_PER_HOUR = 1.0 / 730
# CloudWatch Logs pricing, $0.50 per GB ingested; and S3's and SQS's requests of Terraform, which are hundreds.
_LOGS_AND_TERRAFORM_USD = 0.02


def upper_bound_usd() -> float:
    """What a run costs at most, US dollars: `_ROUNDS` of the largest planned round, and an hour of the rest."""
    question = Question(MODEL_BYTES, CLIENTS)
    rounds = [predict(question, Configuration(shards)) for shards in SHARD_COUNTS]
    rounds += [predict(question, Configuration(topology=tree)) for tree in TREES]
    dearest = max(plan.predicted_cost_usd for plan in rounds)
    standing = 3 * len(rounds) * _ALARM_USD_PER_HOUR + _KEY_USD_PER_HOUR
    return _ROUNDS * dearest + standing + _LOGS_AND_TERRAFORM_USD


def announcement(environment: str, prefix: str, data_dir: Path) -> str:
    """What will be created, what it may cost, and how to remove it by hand."""
    lanes = [*(f"{prefix}-shards-{shards}" for shards in SHARD_COUNTS), *(f"{prefix}-{tree}" for tree in TREES)]
    return f"""\
The end-to-end tests will run on the AWS account of your credentials, with environments/{environment}.

They create, in the Terraform workspace {prefix} of that environment's backend:
  1 bucket, {prefix}-bucket, with models of {MODEL_BYTES / 1e6:.0f} MB;
  {len(lanes)} lanes, each a queue, its dead-letter queue, a function, a log group, a role and three alarms:
    {f"{chr(10)}    ".join(lanes)}
  1 result queue; IAM policies {prefix}-*.
terraform.tfvars and local.auto.tfvars of environments/{environment} apply, except for names and sizes.

They run for about ten minutes, with up to {CLIENTS} clients a round, and cost less than ${upper_bound_usd():.2f} by the
prices in orchestrator/planning/prices.py (us-east-1). What is deployed in {environment} already is not touched.

All of it is destroyed at the end, whatever the tests say. Should this be killed, destroy it yourself:
  TF_DATA_DIR={data_dir} orchestrator destroy --env {environment} --yes --var name_prefix={prefix}
"""


def confirmed_account(environ: Mapping[str, str], terminal: bool) -> str:
    """The id of the account that somebody wants the tests to run on. Asks, where there is a terminal.

    Raises:
        BadInput: nobody says so.
    """
    named = environ.get("CONFIRM_ACCOUNT", "")
    if not named and terminal:
        named = click.prompt("Id of the account to run them on (empty: none)", default="", show_default=False, err=True)
    if not named:
        raise BadInput("Nothing was created. To go on, say which account it is: CONFIRM_ACCOUNT=<account id>.")
    if not (named.isascii() and named.isdigit() and len(named) == 12):
        raise BadInput(f"CONFIRM_ACCOUNT={named} is no account id: expected 12 digits. Nothing was created.")
    return named


def check_account(named: str) -> None:
    """Refuse to go on where the credentials are another account's.

    Raises:
        BadInput: they are.
    """
    actual = boto3.client("sts", region_name="us-east-1").get_caller_identity()["Account"]
    if actual != named:
        raise BadInput(f"The credentials are those of account {actual}, not of {named}. Nothing was created.")


class Workspace:
    """A Terraform workspace of an environment's backend, selected in a data directory of its own."""

    def __init__(self, environment: str, name: str, data_dir: Path) -> None:
        self._directory = environment_dir(environment)
        self._name = name
        self.variables = {"TF_DATA_DIR": str(data_dir)}
        if not (self._directory / "backend.hcl").exists():
            raise BadInput(
                f"Environment {environment} has no backend.hcl, which says where its Terraform state is. "
                f"Copy {self._directory / 'backend.hcl.example'} to backend.hcl and fill it in."
            )

    def create(self) -> None:
        self._terraform("init", "-input=false", "-backend-config=backend.hcl")
        self._terraform("workspace", "new", self._name)

    def delete(self) -> None:
        """Delete the workspace; Terraform refuses where anything is left in it."""
        self._terraform("workspace", "select", "default")
        self._terraform("workspace", "delete", self._name)

    def _terraform(self, *arguments: str) -> None:
        result = run_terraform(arguments, self._directory, **self.variables)
        if result.returncode != 0:
            raise OrchestratorError(f"terraform {' '.join(arguments)} failed:\n{result.stderr.strip()}")


def run(environment: str) -> int:
    """Announce, wait for the confirmation, run the tests; their exit status."""
    if environment == "local":
        raise BadInput("Say which environment: make test-aws ENV=dev. The local one is tested by make e2e-test.")
    prefix = f"fedagg-test-{uuid4().hex[:6]}"
    # Kept where the run is killed: it says which workspace was selected.
    data_dir = Path(tempfile.gettempdir()) / f"{prefix}-terraform"
    click.echo(announcement(environment, prefix, data_dir), err=True)
    account = confirmed_account(os.environ, sys.stdin.isatty())
    workspace = Workspace(environment, prefix, data_dir)
    check_account(account)
    workspace.create()
    environ = {
        **os.environ, **workspace.variables, "FEDAGG_TEST_ENV": environment, "FEDAGG_TEST_PREFIX": prefix,
    }  # fmt: skip
    tests = subprocess.Popen([sys.executable, "-m", "pytest", "tests/emulator"], cwd=ROOT, env=environ)
    while True:
        try:
            status = tests.wait()
            break
        except KeyboardInterrupt:
            click.echo("Stopping; the tests tear down what they created ...", err=True)
    workspace.delete()
    click.echo(f"Nothing is left of {prefix}.", err=True)
    return status


@click.command(help=__doc__)
@click.option("--env", "environment", required=True)
def main(environment: str) -> None:
    try:
        sys.exit(run(environment))
    except FederationError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(getattr(error, "exit_status", 1))


if __name__ == "__main__":
    main()
