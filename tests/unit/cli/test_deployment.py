"""`--deployment FILE` instead of `--env`, and the commands that make the file."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from orchestrator.aws.deployment import Deployment
from orchestrator.cli.main import main
from orchestrator.deployment import function_zip, load, protection, terraform
from orchestrator.deployment.file import load_deployment_file, save_deployment_file
from orchestrator.paths import ROOT, state_home
from tests.support.commands import error_of, run

# They work on an environment's Terraform code or state.
ONLY_FROM_A_CHECKOUT = {"deploy", "show-deployment", "destroy", "build"}
_CONTEXT = click.Context(main)
COMMANDS = {name: command for name in main.list_commands(_CONTEXT) if (command := main.get_command(_CONTEXT, name))}
FOR_AN_ENVIRONMENT = [name for name, command in COMMANDS.items() if any(p.name == "env" for p in command.params)]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment is asked for."""
    for name in ("FEDAGG_ENV", "FEDAGG_DEPLOYMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDAGG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(load, "load_deployment", lambda env: pytest.fail(f"environment {env} is not needed"))


@pytest.fixture
def file(lanes_without_functions: Deployment, tmp_path: Path) -> Path:
    """A deployment file."""
    save_deployment_file(lanes_without_functions, tmp_path / "deployment.json")
    return tmp_path / "deployment.json"


@pytest.mark.parametrize("name", FOR_AN_ENVIRONMENT)
def test_every_command_that_needs_no_checkout_takes_a_deployment_file(name: str) -> None:
    options = {parameter.name for parameter in COMMANDS[name].params if isinstance(parameter, click.Option)}
    assert ("deployment_file" in options) == (name not in ONLY_FROM_A_CHECKOUT)


def test_a_deployment_file_replaces_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("rounds", "--deployment", file).stdout == "No rounds.\n"
    monkeypatch.setenv("FEDAGG_DEPLOYMENT", str(file))
    assert run("rounds").stdout == "No rounds.\n"


def test_an_option_takes_precedence_over_an_environment_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDAGG_ENV", "prod")
    assert run("rounds", "--deployment", file).stdout == "No rounds.\n"
    monkeypatch.delenv("FEDAGG_ENV")
    monkeypatch.setenv("FEDAGG_DEPLOYMENT", str(file))
    assert "No environment 'nowhere'" in run("rounds", "--env", "nowhere", ok=False).stderr


def test_an_environment_and_a_deployment_file_together_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("rounds", "--env", "dev", "--deployment", file, "--output", "json", ok=False)
    assert result.exit_code == 2
    assert error_of(result)["message"] == "--env and --deployment name one deployment each. Pass only one of them."
    monkeypatch.setenv("FEDAGG_ENV", "dev")
    monkeypatch.setenv("FEDAGG_DEPLOYMENT", str(file))
    result = run("rounds", ok=False)
    assert result.exit_code == 2
    assert "FEDAGG_ENV and FEDAGG_DEPLOYMENT name one deployment each. Unset one of them" in result.stderr


@pytest.mark.parametrize("content", [None, "", "{}", "{"])
def test_a_bad_deployment_file_exits_with_2_and_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    for given in (path, tmp_path):
        result = run("status", "--round", "r-1", "--deployment", given, "--output", "json", ok=False)
        assert result.exit_code == 2
        assert error_of(result)["kind"] == "BadInput"
        assert str(given) in error_of(result)["message"]


def test_where_deploy_writes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert terraform.deployment_file("local") == state_home() / "deployment.json"
    assert terraform.deployment_file("prod") == ROOT / "environments" / "prod" / "deployment.json"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4599")
    assert terraform.deployment_file("local") == terraform.local_state_dir() / "deployment.json"


def test_deploy_writes_the_file_show_prints_it_and_destroy_removes_it(
    lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "deployment.json"
    monkeypatch.setattr(function_zip, "build", lambda target: ROOT / "build" / "aws.zip")
    monkeypatch.setattr(terraform, "apply", lambda env, values, **options: None)
    monkeypatch.setattr(terraform, "destroy", lambda env, values, **options: None)
    monkeypatch.setattr(protection, "check_destroyable", lambda env: [])
    monkeypatch.setattr(terraform, "deployment_file", lambda env: path)
    monkeypatch.setattr(load, "load_deployment", lambda env: lanes_without_functions)
    run("deploy", "--env", "dev", "--plan")
    assert not path.exists()
    assert run("deploy", "--env", "dev", "--yes").stdout.endswith(f"\nDeployment file: {path}\n")
    assert load_deployment_file(path) == lanes_without_functions
    for form in ("text", "json"):
        assert json.loads(run("show-deployment", "--output", form).stdout) == json.loads(path.read_text())
    run("destroy", "--env", "dev", "--yes")
    assert not path.exists()
