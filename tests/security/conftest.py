"""environments/prod, applied to an emulator that enforces IAM, resource policies, TLS and signatures.

The emulator is MiniStack with AUTH=true and USE_SSL=1. Its evaluator knows resources, conditions, policy variables and
resource policies; a function runs with the credentials of its role.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment, parse_deployment
from orchestrator.deployment import function_zip
from orchestrator.deployment.terraform import run_terraform
from orchestrator.paths import ROOT

ACCOUNT, REGION = "000000000000", "us-east-1"
REPOSITORY, BRANCH = "example/federation", "main"
STATE = {"bucket": "example-terraform-state", "key": "fedagg/prod/terraform.tfstate"}
SHARD_COUNTS = [1, 4]
_START_TIMEOUT_S = 60

# What an emulator needs of the provider; everything else is the environment's own.
_OVERRIDE = """
provider "aws" {
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
  s3_use_path_style           = true
}

terraform {
  backend "local" {
    path = "terraform.tfstate"
  }
}
"""


@dataclass(frozen=True)
class Enforcing:
    """The emulator, and how to talk to it as somebody."""

    url: str
    ca_bundle: str

    def client(self, service: str, credentials: dict[str, str] | None = None, url: str | None = None) -> Any:
        """A boto3 client with somebody's credentials; the account's root where none are given."""
        config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0})
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=url or self.url,
            verify=self.ca_bundle,
            config=config,
            **(credentials or {"aws_access_key_id": "test", "aws_secret_access_key": "test"}),
        )

    def clients(self, credentials: dict[str, str]) -> AwsClients:
        """The same, as the orchestrator's modules take it."""
        return AwsClients(self.client("s3", credentials), self.client("sqs", credentials))

    def assume(self, role_arn: str) -> dict[str, str]:
        """Credentials of a session of a role."""
        found = self.client("sts").assume_role(RoleArn=role_arn, RoleSessionName="test")["Credentials"]
        return {
            "aws_access_key_id": found["AccessKeyId"],
            "aws_secret_access_key": found["SecretAccessKey"],
            "aws_session_token": found["SessionToken"],
        }


@pytest.fixture(scope="session")
def enforcing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enforcing]:
    home = tmp_path_factory.mktemp("enforcing")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LAMBDA_"))},
        "GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "MINISTACK_HOST": "127.0.0.1", "LAMBDA_EXECUTOR": "local",
        "SFTP_ENABLED": "0", "IOT_MTLS_ENABLED": "0", "PYTHONUNBUFFERED": "1",
        "AUTH": "true", "USE_SSL": "1", "TMPDIR": str(home),
    }  # fmt: skip
    log = home / "emulator.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    certificate = home / "ministack-tls" / "server.crt"
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _healthy(url, certificate):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_CA_BUNDLE", str(certificate))
            yield Enforcing(url, str(certificate))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):  # the functions' processes, which are its group
            os.killpg(process.pid, signal.SIGKILL)


def _healthy(url: str, certificate: Path) -> bool:
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"{url}/_localstack/health", timeout=2, context=context) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@dataclass(frozen=True)
class Prod:
    """What `terraform apply` made of environments/prod."""

    deployment: Deployment
    access: dict[str, Any]
    kms_key_arn: str
    resources: list[dict[str, Any]]
    directory: Path

    def arns(self, type_: str) -> list[str]:
        return [r["values"]["arn"] for r in self.resources if r["type"] == type_]


@pytest.fixture(scope="session")
def prod(enforcing: Enforcing, tmp_path_factory: pytest.TempPathFactory) -> Prod:
    """environments/prod with a CI role, applied with the provider pointed at the emulator and nothing else changed."""
    top = tmp_path_factory.mktemp("terraform")
    for name in ("infra", "environments/prod", "orchestrator/planning/sizing.json"):
        target = top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():  # what is linked is copied; a user's own values and state stay behind
            yours = shutil.ignore_patterns(".terraform", "*.auto.tfvars", "backend.hcl")
            shutil.copytree(ROOT / name, target, ignore=yours)
        else:
            shutil.copy(ROOT / name, target)
    directory = top / "environments" / "prod"
    (directory / "emulator_override.tf").write_text(_OVERRIDE)
    target = function_zip.target_for("local")
    variables = {
        "package_path": str(function_zip.build(target)), "runtime": target.runtime,
        "cpu_architecture": target.cpu_architecture,
        "model_bytes": 30_000_000, "clients": 12, "shard_counts": SHARD_COUNTS,
        "github_repository": REPOSITORY, "github_branch": BRANCH, "create_github_oidc_provider": True,
        "terraform_state_bucket": STATE["bucket"], "maximum_concurrency": 3, "alarm_email": "someone@example.com",
        "check_concurrency_quota": False,  # the emulator has no Service Quotas
    }  # fmt: skip
    (directory / "terraform.tfvars.json").write_text(json.dumps(variables))
    endpoint = {
        "AWS_ENDPOINT_URL": enforcing.url, "AWS_CA_BUNDLE": enforcing.ca_bundle,
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip
    for arguments in (["init", "-input=false"], ["apply", "-input=false", "-auto-approve", "-parallelism=40"]):
        result = run_terraform([*arguments, "-no-color"], directory, **endpoint)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr
    shown = json.loads(run_terraform(["show", "-json"], directory, **endpoint).stdout)["values"]
    deployment = shown["outputs"]["deployment"]["value"]
    return Prod(
        deployment=parse_deployment({**deployment, "endpoint_url": enforcing.url}),
        access=shown["outputs"]["access"]["value"],
        kms_key_arn=deployment["kms_key_arn"],
        resources=list(_resources(shown["root_module"])),
        directory=directory,
    )


def _resources(module: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from module.get("resources", [])
    for child in module.get("child_modules", []):
        yield from _resources(child)
