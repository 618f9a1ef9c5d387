"""A wheel outside a checkout works with a deployment file alone, and the sample workflow runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import yaml

from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.paths import ROOT
from tests.support.installed import Installation, install, write_program
from tests.support.rounds import expected_file, put, read_global, weights, working

PLACEHOLDER = re.compile(r"\$\{\{ (.*?) \}\}")
NO_FILE = re.compile(r"hashFiles\('(.*)'\) == ''")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel, installed once for this module."""
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty directory outside a checkout."""
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory


@pytest.fixture
def file(lanes_without_functions: Deployment, tmp_path: Path) -> Path:
    """The deployment file of the test's lanes."""
    path = tmp_path / "deployment.json"
    path.write_text(lanes_without_functions.to_json())
    return path


@contextmanager
def worker(installed: Installation, file: Path, cwd: Path) -> Iterator[None]:
    """While the block runs, `orchestrator worker` processes the jobs."""
    process = installed.start("worker", "--deployment", file, cwd=cwd)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def test_every_command_for_rounds_works_from_an_empty_directory(
    installed: Installation, file: Path, empty: Path, aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    def run(*arguments: str | Path) -> Any:
        return installed.run(*arguments, cwd=empty, FEDAGG_DEPLOYMENT=str(file))

    assert installed.run("rounds", "--deployment", file, cwd=empty) == []
    updates = {"a": (weights(1), 3), "b": (weights(2), 5)}
    for client, (values, examples) in updates.items():
        safetensors.numpy.save_file(values, empty / f"{client}.safetensors")
        run("submit", f"{client}.safetensors", "--round", "r-1", "--client", client, "--examples", str(examples))
    with worker(installed, file, empty):
        report = run("start-round", "--model", "digits", "--round", "r-1", "--shards", "4", "--min-clients", "2")
        assert run("compare", "--model-bytes", "4000", "--clients", "2", "--shards", "2")
    assert report["status"] == "published"
    assert run("resume", "--round", "r-1") == run("report", "--round", "r-1") == report
    assert run("status", "--round", "r-1")["state"] == "published"
    assert run("verify", "--round", "r-1")["verified"]
    run("fetch", "--model", "digits", "--to", "global.safetensors")
    assert (empty / "global.safetensors").read_bytes() == expected_file(updates)
    run("invite", "--round", "r-2", "--client", "a", "--model", "digits", "--out", "a.json")
    run("submit", "a.safetensors", "--invite", "a.json", "--examples", "3")
    conflict = installed.run("abort", "--round", "r-1", cwd=empty, expect=6, FEDAGG_DEPLOYMENT=str(file))
    assert "published" in conflict["error"]["message"]
    client = f"Client('a', model='digits', deployment={str(file)!r})"
    assert installed.python(f"from orchestrator import Client; print({client}.latest_round())", cwd=empty) == "r-1\n"


def test_without_a_deployment_file_the_error_names_it(installed: Installation, empty: Path) -> None:
    error = installed.run("rounds", cwd=empty, expect=2)["error"]
    assert error["message"].startswith(
        "There is no environment 'local' here: this installation has no environments directory. Pass --deployment FILE "
        "(FEDAGG_DEPLOYMENT; in Python, deployment=FILE), the file that `orchestrator deploy` writes, or run from a "
        "checkout"
    )


def test_inside_a_checkout_the_installed_command_line_finds_its_environments(
    installed: Installation, checkout: Path
) -> None:
    assert "dev, local, prod" in installed.run("rounds", "--env", "x", cwd=checkout, expect=2)["error"]["message"]
    error = installed.run("rounds", "--env", "prod", cwd=checkout / "environments" / "shared", expect=3)["error"]
    assert f"Copy {checkout}/environments/prod/backend.hcl.example" in error["message"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The part of a checkout that a round needs: its environments."""
    directory = tmp_path / "checkout"
    ours = shutil.ignore_patterns(".terraform", "*.auto.tfvars", "backend.hcl", "deployment.json")
    shutil.copytree(ROOT / "environments", directory / "environments", symlinks=True, ignore=ours)
    return directory


@pytest.mark.parametrize("committed", [True, False], ids=["the-file-is-committed", "the-file-is-made-from-the-state"])
def test_the_sample_workflow_runs_a_round(
    installed: Installation,
    checkout: Path,
    file: Path,
    committed: bool,
    aws: AwsClients,
    lanes_without_functions: Deployment,
    tmp_path: Path,
) -> None:
    """The steps of docs/examples/round.yml, without the actions: an emulator needs no credentials."""
    values = {
        "vars.AWS_REGION": "us-east-1",
        "vars.TF_STATE_BUCKET": "state-bucket",
        "inputs.round || format('nightly-{0}', github.run_number)": "nightly-1",
        "inputs.min_clients || '8'": "2",
    }
    environ = installed.environ()
    if committed:
        shutil.copy(file, checkout / "environments" / "prod" / "deployment.json")
    else:
        environ = terraform_with_outputs(installed, tmp_path, file)
    updates = {"a": (weights(1), 3), "b": (weights(2), 5)}
    for client, (tensors, examples) in updates.items():
        put(aws, lanes_without_functions, client, tensors, examples, round_id="nightly-1")
    with working(aws, lanes_without_functions, *lanes_without_functions.lanes):
        done = [run_step(step, values, checkout, environ) for step in steps_of(ROOT / "docs/examples/round.yml")]
    assert done.count(True) == (1 if committed else 2)
    assert json.loads((checkout / "report.json").read_text())["status"] == "published"
    assert read_global(aws, lanes_without_functions, "nightly-1", "vgg") == expected_file(updates)


def terraform_with_outputs(installed: Installation, directory: Path, file: Path) -> dict[str, str]:
    """Environment variables with a `terraform` in PATH whose outputs are the deployment in a file."""
    outputs = {"deployment": {"value": json.loads(file.read_text())}}
    (directory / "outputs.json").write_text(json.dumps(outputs))
    (directory / "bin").mkdir()
    write_program(directory / "bin" / "terraform", f'[ "$1" = init ] || cat {directory}/outputs.json')
    (directory / "terraform.tfrc").touch()  # without one, the registry would be asked
    environ = installed.environ(TF_CLI_CONFIG_FILE=str(directory / "terraform.tfrc"))
    return environ | {"PATH": f"{directory}/bin:{environ['PATH']}"}


def steps_of(workflow: Path) -> list[dict[str, Any]]:
    """The steps of the only job of a workflow."""
    [job] = yaml.safe_load(workflow.read_text())["jobs"].values()
    steps: list[dict[str, Any]] = job["steps"]
    return steps


def run_step(step: dict[str, Any], values: dict[str, str], cwd: Path, environ: dict[str, str]) -> bool:
    """Run a step as GitHub's runner does; False where it is skipped, an action, or installs what is installed."""
    script = step.get("run", "")
    if script in ("", "pip install ."):
        return False
    if "if" in step:
        condition = NO_FILE.fullmatch(step["if"])
        assert condition, step["if"]
        if (cwd / condition[1]).exists():
            return False

    def filled(text: str) -> str:
        return PLACEHOLDER.sub(lambda found: values[found[1]], text)

    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail"] if step.get("shell") == "bash" else ["bash", "-e"]
    variables = {name: filled(value) for name, value in step.get("env", {}).items()}
    done = subprocess.run(
        [*shell, "-c", filled(script)], cwd=cwd, env=environ | variables, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return True
