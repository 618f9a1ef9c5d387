"""Terraform, through python-terraform: apply, destroy and outputs of an environment; with or without its registry."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from python_terraform import IsFlagged, IsNotFlagged, Terraform

from orchestrator.errors import BadInput, NotDeployed, OrchestratorError
from orchestrator.paths import ROOT, state_home

ENVIRONMENTS = ROOT / "environments"


REGISTRY = "registry.terraform.io"


_REGISTRY_TIMEOUT_S = 5


# Terraform's "implied local mirror directories" (CLI configuration, "Implied Local Mirror Directories"), and the
# directories in which administrators of air-gapped machines keep mirrors.
_MIRRORS_IMPLIED = ("~/.terraform.d/plugins", "~/.local/share/terraform/plugins")


_MIRROR_PARENTS = ("/opt", "/usr/share", "/usr/local/share")


def environment_dir(environment: str) -> Path:
    """The directory of an environment.

    Raises:
        BadInput: there is none of that name; lists those that exist, or says what to do without a checkout.
    """
    known = (
        sorted(path.name for path in ENVIRONMENTS.iterdir() if (path / "terraform.tfvars").exists())
        if ENVIRONMENTS.is_dir()
        else []
    )
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
    """Where the local environment's Terraform state is: that of an emulator elsewhere has a directory of its own."""
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
    """A filesystem mirror that holds the AWS provider: a directory that contains `registry.terraform.io/hashicorp/aws`.

    Looks in `TF_PLUGIN_MIRROR`, in Terraform's implied mirror directories, and right under /opt, /usr/share and
    /usr/local/share.

    Raises:
        BadInput: `TF_PLUGIN_MIRROR` is set and holds no AWS provider.
    """

    def holds_provider(path: Path) -> bool:
        try:
            return (path / REGISTRY / "hashicorp" / "aws").is_dir()
        except PermissionError:
            return False

    named = environ.get("TF_PLUGIN_MIRROR")
    if named:
        if not holds_provider(Path(named)):
            raise BadInput(
                f"TF_PLUGIN_MIRROR={named} holds no AWS provider: expected "
                f"{Path(named) / REGISTRY / 'hashicorp' / 'aws'}. "
                "Make one with `terraform providers mirror`, or unset the variable."
            )
        return Path(named)
    candidates = [Path(path).expanduser() for path in _MIRRORS_IMPLIED]
    for parent in map(Path, _MIRROR_PARENTS):
        try:
            children = sorted(parent.iterdir())
        except OSError:  # not there, or not for us to read
            children = []
        candidates += [parent, *children, parent / "terraform" / "plugins"]
    return next((path for path in candidates if holds_provider(path)), None)


@contextmanager
def terraform_environment(*, providers: bool = True) -> Iterator[dict[str, str]]:
    """Environment variables for a Terraform process: the user's own, plus a mirror where the registry does not answer.

    A CLI configuration file that exists is the user's word and is left alone; `TF_CLI_CONFIG_FILE` naming a file that
    does not exist is treated as unset.

    Args:
        providers: whether the process will install providers. Reading outputs does not, and must not wait for a
            registry.

    Raises:
        OrchestratorError: neither the registry nor a mirror is there, or Terraform is not installed.
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
    """Where Terraform keeps which backend and providers an environment was initialised with."""
    if environment == "local":
        return local_state_dir() / "terraform"
    return Path(os.environ.get("TF_DATA_DIR") or environment_dir(environment) / ".terraform")


@contextmanager
def _terraform(environment: str, *, providers: bool = True) -> Iterator[tuple[Terraform, dict[str, Any]]]:
    """python-terraform for an environment, with its process environment in place, and options for `init`."""
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
    # No provider but the ones that are committed, and no change of the lock file behind anybody's back.
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
    """`terraform plan` an environment and apply that very plan; progress goes to stderr.

    Args:
        plan_only: show the plan and change nothing.
        confirm: called between the two; raises where the plan is not to be applied.

    Raises:
        OrchestratorError: Terraform failed.
    """
    # A plan contains the state, so it is kept where nobody else reads it, and only until it is applied.
    with _terraform(environment) as (tf, init), _stdout_to_stderr(), tempfile.TemporaryDirectory() as directory:
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
    """`terraform destroy` an environment; progress goes to stderr.

    Args:
        give_up: addresses that are taken out of the state before, because they would prevent it.

    Raises:
        OrchestratorError: Terraform failed.
    """
    with _terraform(environment) as (tf, init), _stdout_to_stderr():
        _init(tf, init)
        if give_up:
            _run(tf, "state", "rm", *give_up)
        # python-terraform's own destroy() passes -force, which Terraform 1.0 dropped.
        _run(
            tf,
            "destroy",
            show=show,
            input=False,
            auto_approve=IsFlagged,
            force=IsNotFlagged,
            var=dict(variables) or None,
        )


def outputs(environment: str) -> dict[str, Any]:
    """The outputs in an environment's state, by name: `{"value": ..., "type": ...}`; empty where nothing is deployed.

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
    """The outputs in the local environment's state file; empty where there is none.

    In the environment's directory Terraform would first hash the provider's package, which takes half a second. In the
    state's own directory, which has no configuration and no providers, it reads the file and nothing else.
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
    """The `values` of `terraform show -json`: resources and outputs of an environment; empty where nothing is deployed.

    Raises:
        OrchestratorError: Terraform failed.
    """
    if environment == "local" and not (local_state_dir() / "terraform.tfstate").exists():
        return {}
    with _terraform(environment) as (tf, init):
        _init(tf, init)
        values: dict[str, Any] = json.loads(_run(tf, "show", json=IsFlagged)).get("values", {})
        return values


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Terraform narrates on stdout; ours is for data."""
    saved = sys.stdout
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = saved


def run_terraform(arguments: Sequence[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Any Terraform command in any directory, with the registry or a mirror; used by `make` and the tests."""
    with terraform_environment() as environ:
        return subprocess.run(
            ["terraform", *arguments],
            cwd=directory,
            env={**environ, **variables},
            text=True,
            capture_output=True,
            check=False,
        )
