"""Runs Terraform: apply, destroy, outputs and state of an environment, with or without access to the registry."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from python_terraform import IsFlagged, IsNotFlagged, Terraform

from orchestrator.errors import BadInput, NotDeployed, OrchestratorError
from orchestrator.paths import ROOT, state_home

ENVIRONMENTS = ROOT / "environments"
REGISTRY = "registry.terraform.io"
_REGISTRY_TIMEOUT_S = 5
# Terraform's documentation of the CLI configuration, "Implied Local Mirror Directories"; and the directories in which
# administrators of machines without Internet access keep mirrors.
_MIRRORS_IMPLIED = ("~/.terraform.d/plugins", "~/.local/share/terraform/plugins")
_MIRROR_PARENTS = ("/opt", "/usr/share", "/usr/local/share")


def environment_dir(environment: str) -> Path:
    """The directory of an environment.

    Raises:
        BadInput: there is none of that name; lists those that exist, or says what to do without a checkout.
    """
    known = sorted(path.parent.name for path in ENVIRONMENTS.glob("*/terraform.tfvars"))
    if not known:
        raise BadInput(
            f"There is no environment {environment!r} here: this installation has no environments directory. Pass "
            "--deployment FILE (FEDAGG_DEPLOYMENT; in Python, deployment=FILE), the file that `orchestrator deploy` "
            "writes, or run from a checkout, as deploy, show-deployment, destroy and build must."
        )
    if environment not in known:
        raise BadInput(f"No environment {environment!r}; there are: {', '.join(known)}.")
    return ENVIRONMENTS / environment


def local_state_dir() -> Path:
    """Where the local environment's Terraform state is: a directory of its own for an emulator elsewhere."""
    url = os.environ.get("AWS_ENDPOINT_URL")
    return state_home() / "elsewhere" / re.sub(r"\W+", "-", url).strip("-") if url else state_home()


def deployment_file(environment: str) -> Path:
    """Where `deploy` writes an environment's deployment file: for `local`, beside the emulator's Terraform state."""
    return (local_state_dir() if environment == "local" else environment_dir(environment)) / "deployment.json"


def registry_answers() -> bool:
    """Whether Terraform's registry can be reached from here."""
    request = urllib.request.Request(f"https://{REGISTRY}/.well-known/terraform.json")
    try:
        with urllib.request.urlopen(request, timeout=_REGISTRY_TIMEOUT_S) as response:  # a constant https URL  # noqa: S310  # nosec B310
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def find_mirror(environ: Mapping[str, str] = os.environ) -> Path | None:
    """A filesystem mirror of the AWS provider: a directory that contains `registry.terraform.io/hashicorp/aws`.

    Looks in `TF_PLUGIN_MIRROR`, in Terraform's implied mirror directories, and in the subdirectories of /opt,
    /usr/share and /usr/local/share.

    Raises:
        BadInput: `TF_PLUGIN_MIRROR` is set and holds no AWS provider.
    """
    provider = Path(REGISTRY, "hashicorp", "aws")

    def holds_provider(path: Path) -> bool:
        try:
            return (path / provider).is_dir()
        except PermissionError:
            return False

    named = environ.get("TF_PLUGIN_MIRROR")
    if named:
        if not holds_provider(Path(named)):
            raise BadInput(
                f"TF_PLUGIN_MIRROR={named} holds no AWS provider: expected {Path(named) / provider}. "
                "Make one with `terraform providers mirror`, or unset the variable."
            )
        return Path(named)
    candidates = [Path(path).expanduser() for path in _MIRRORS_IMPLIED]
    for parent in map(Path, _MIRROR_PARENTS):
        try:
            children = sorted(parent.iterdir())
        except OSError:  # it does not exist or cannot be read
            children = []
        candidates += [parent, *children, parent / "terraform" / "plugins"]
    return next((path for path in candidates if holds_provider(path)), None)


@contextmanager
def terraform_environment(*, providers: bool = True) -> Iterator[dict[str, str]]:
    """Environment variables for a Terraform process: the user's own, plus a mirror if the registry does not answer.

    A CLI configuration file that exists is used as it is. If `TF_CLI_CONFIG_FILE` names a file that does not exist, the
    variable is ignored.

    Args:
        providers: whether the process installs providers. If it does not, the registry is not asked.

    Raises:
        OrchestratorError: Terraform is not installed, or there is neither a registry nor a mirror.
    """
    if shutil.which("terraform") is None:
        raise OrchestratorError(
            "Terraform is not installed: https://developer.hashicorp.com/terraform/install (>= 1.11)."
        )
    environ = dict(os.environ)
    environ.setdefault("TF_IN_AUTOMATION", "1")
    environ["CHECKPOINT_DISABLE"] = "1"
    config = environ.get("TF_CLI_CONFIG_FILE")
    if config and not Path(config).exists():
        del environ["TF_CLI_CONFIG_FILE"]
        config = None
    if not providers or config or Path("~/.terraformrc").expanduser().exists() or registry_answers():
        yield environ
        return
    mirror = find_mirror()
    if mirror is None:
        raise OrchestratorError(
            f"{REGISTRY} does not answer, and no mirror of the AWS provider was found. Set TF_PLUGIN_MIRROR to a "
            "directory made with `terraform providers mirror`."
        )
    with tempfile.NamedTemporaryFile("w", prefix="terraform-", suffix=".tfrc") as file:
        file.write(
            f"provider_installation {{\n  filesystem_mirror {{\n    path = {json.dumps(str(mirror))}\n  }}\n}}\n"
        )
        file.flush()
        environ["TF_CLI_CONFIG_FILE"] = file.name
        yield environ


def _data_dir(environment: str) -> Path:
    """The directory in which `terraform init` records an environment's backend and providers."""
    if environment == "local":
        return local_state_dir() / "terraform"
    return Path(os.environ.get("TF_DATA_DIR") or environment_dir(environment) / ".terraform")


@contextmanager
def _terraform(environment: str, *, providers: bool = True) -> Iterator[tuple[Terraform, dict[str, Any]]]:
    """python-terraform for an environment, and options for `init`. Inside, os.environ is that of Terraform."""
    directory = environment_dir(environment)
    configured = (directory / "backend.hcl").exists() or (_data_dir(environment) / "terraform.tfstate").exists()
    if environment != "local" and not configured:
        raise NotDeployed(
            f"Environment {environment} is not set up here: it has no backend.hcl, which says where its Terraform "
            f"state is. Copy {directory / 'backend.hcl.example'} to backend.hcl, fill it in, and run "
            f"`orchestrator deploy --env {environment}`."
        )
    with terraform_environment(providers=providers) as environ:
        init: dict[str, Any] = {}
        if environment == "local":
            home = local_state_dir()
            home.mkdir(parents=True, exist_ok=True)
            environ["TF_DATA_DIR"] = str(_data_dir(environment))
            init["backend_config"] = {"path": str(home / "terraform.tfstate")}
        elif (directory / "backend.hcl").exists():
            init["backend_config"] = "backend.hcl"
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(environ)
        try:
            yield Terraform(working_dir=str(directory)), init
        finally:
            os.environ.clear()
            os.environ.update(before)


def _run(tf: Terraform, command: str, *args: str, show: bool = False, **options: Any) -> str:
    """Run a Terraform command; its output goes to stderr (`show`) or is returned."""
    code, out, err = tf.cmd(command, *args, no_color=IsFlagged, capture_output="no" if show else True, **options)
    if code != 0:
        detail = "" if show else f":\n{(err or out).strip()}"
        raise OrchestratorError(f"terraform {command} failed in {tf.working_dir} (exit status {code}){detail}")
    return out or ""


def _init(tf: Terraform, options: dict[str, Any]) -> None:
    lock_file = Path(str(tf.working_dir)) / ".terraform.lock.hcl"
    # Only the providers of the committed lock file are installed, and the file is not changed.
    locked: dict[str, Any] = {"lockfile": "readonly"} if lock_file.exists() else {}
    _run(tf, "init", input=False, **locked, **options)


def apply(
    environment: str,
    variables: Mapping[str, object],
    *,
    plan_only: bool = False,
    confirm: Callable[[], object] = lambda: None,
    show: bool = True,
) -> None:
    """Run `terraform plan` for an environment and apply that plan; progress goes to stderr.

    Args:
        plan_only: show the plan and change nothing.
        confirm: called between the two; raises an error if the plan must not be applied.

    Raises:
        OrchestratorError: Terraform failed.
    """
    # A plan contains the state, so only its owner can read it, and it is deleted after it is applied.
    with _terraform(environment) as (tf, init), redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as directory:
        _init(tf, init)
        plan = Path(directory) / "plan"
        saved: dict[str, Any] = {} if plan_only else {"out": str(plan)}
        _run(tf, "plan", show=show, input=False, var=dict(variables) or None, **saved)
        if not plan_only:
            confirm()
            _run(tf, "apply", str(plan), show=show, input=False)


def destroy(
    environment: str, variables: Mapping[str, object], *, give_up: Sequence[str] = (), show: bool = True
) -> None:
    """Run `terraform destroy` for an environment; progress goes to stderr.

    Args:
        give_up: addresses that are first removed from the state, because they would prevent it.

    Raises:
        OrchestratorError: Terraform failed.
    """
    with _terraform(environment) as (tf, init), redirect_stdout(sys.stderr):
        _init(tf, init)
        if give_up:
            _run(tf, "state", "rm", *give_up)
        # python-terraform's own destroy() passes -force, which Terraform 1.0 dropped.
        options = {"auto_approve": IsFlagged, "force": IsNotFlagged, "var": dict(variables) or None}
        _run(tf, "destroy", show=show, input=False, **options)


def outputs(environment: str) -> dict[str, Any]:
    """The outputs in an environment's state, by name: `{"value": ..., "type": ...}`; empty if nothing is deployed.

    Raises:
        NotDeployed: the state cannot be read.
    """
    environment_dir(environment)
    if environment == "local":
        return _local_outputs()
    initialised = (_data_dir(environment) / "terraform.tfstate").exists()
    with _terraform(environment, providers=not initialised) as (tf, init):
        if not initialised:
            try:
                _init(tf, init)
            except OrchestratorError as error:
                raise NotDeployed(f"Environment {environment}: its Terraform state cannot be read. {error}") from error
        result: dict[str, Any] = json.loads(_run(tf, "output", json=IsFlagged))
        return result


def _local_outputs() -> dict[str, Any]:
    """The outputs in the local environment's state file; empty if there is none.

    In the environment's directory, Terraform first hashes the provider's package, which takes half a second. In the
    state's directory, which has no configuration, it only reads the state file.
    """
    home = local_state_dir()
    if not (home / "terraform.tfstate").exists():
        return {}
    with terraform_environment(providers=False) as environ:
        environ.pop("TF_DATA_DIR", None)
        done = subprocess.run(
            ["terraform", "output", "-json", "-no-color", "-state=terraform.tfstate"],
            cwd=home, env=environ, text=True, capture_output=True, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise NotDeployed(f"Environment local: its Terraform state cannot be read. {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def state_values(environment: str) -> dict[str, Any]:
    """The `values` of `terraform show -json`: resources and outputs of an environment; empty if nothing is deployed.

    Raises:
        OrchestratorError: Terraform failed.
    """
    if environment == "local" and not (local_state_dir() / "terraform.tfstate").exists():
        return {}
    with _terraform(environment) as (tf, init):
        _init(tf, init)
        values: dict[str, Any] = json.loads(_run(tf, "show", json=IsFlagged)).get("values", {})
        return values


def run_terraform(arguments: Sequence[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run any Terraform command in any directory, with the registry or a mirror. The tests use it."""
    with terraform_environment() as environ:
        return subprocess.run(
            ["terraform", *arguments],
            cwd=directory, env={**environ, **variables}, text=True, capture_output=True, check=False,
        )  # fmt: skip
