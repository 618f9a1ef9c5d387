"""Terraform with and without its registry, and the environments that there are."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.deployment import terraform
from orchestrator.deployment.terraform import (
    environment_dir,
    find_mirror,
    local_state_dir,
    outputs,
    terraform_environment,
)
from orchestrator.errors import BadInput, NotDeployed, OrchestratorError
from orchestrator.paths import ROOT, state_home


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No registry, no mirror, no configuration, a home of the test's own."""
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("FEDAGG_HOME", str(tmp_path / "home"))
    for name in ("TF_CLI_CONFIG_FILE", "TF_PLUGIN_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(terraform, "_MIRROR_PARENTS", (str(tmp_path / "opt"),))
    monkeypatch.setattr(terraform, "registry_answers", lambda: False)
    monkeypatch.setattr(terraform.shutil, "which", lambda name: f"/usr/bin/{name}")


def a_mirror(path: Path) -> Path:
    (path / "registry.terraform.io" / "hashicorp" / "aws").mkdir(parents=True)
    return path


# --- environments --------------------------------------------------------------------------------------------------


def test_the_environments_are_the_directories() -> None:
    for name in ("local", "dev", "staging", "prod"):
        assert (environment_dir(name) / "main.tf").exists()


@pytest.mark.parametrize("name", ["production", "", "..", "../infra", "local/", "modules"])
def test_an_environment_that_does_not_exist_names_those_that_do(name: str) -> None:
    with pytest.raises(BadInput, match=r"No environment .*; there are: dev, local, prod, staging"):
        environment_dir(name)
    with pytest.raises(BadInput, match="No environment"):
        outputs(name)


def test_without_any_environment_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(terraform, "ENVIRONMENTS", tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"'local' here: .*no environments directory. Pass --deployment FILE"):
        environment_dir("local")


def test_the_home_of_the_local_environment_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert state_home() == tmp_path / "home"
    monkeypatch.setenv("FEDAGG_HOME", "")
    assert state_home() == ROOT / ".emulator"


# --- mirrors -------------------------------------------------------------------------------------------------------


def test_a_mirror_that_is_named_is_used(tmp_path: Path) -> None:
    mirror = a_mirror(tmp_path / "mirror")
    assert find_mirror({"TF_PLUGIN_MIRROR": str(mirror)}) == mirror


def test_a_named_mirror_without_the_provider_is_an_error_not_ignored(tmp_path: Path) -> None:
    a_mirror(tmp_path / "user" / ".terraform.d" / "plugins")
    with pytest.raises(
        BadInput, match=r"holds no AWS provider: expected .*hashicorp/aws.*`terraform providers mirror`"
    ):
        find_mirror({"TF_PLUGIN_MIRROR": str(tmp_path)})


@pytest.mark.parametrize(
    "place",
    ["user/.terraform.d/plugins", "user/.local/share/terraform/plugins", "opt", "opt/mirror", "opt/terraform/plugins"],
)
def test_a_mirror_is_found_where_terraform_and_administrators_keep_them(tmp_path: Path, place: str) -> None:
    mirror = a_mirror(tmp_path / place)
    assert find_mirror({}) == mirror
    assert find_mirror({"TF_PLUGIN_MIRROR": ""}) == mirror


def test_directories_that_may_not_be_read_hold_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who is not root; root reads everything."""
    (tmp_path / "opt" / "private").mkdir(parents=True)
    mirror = a_mirror(tmp_path / "opt" / "readable")
    is_dir, iterdir = Path.is_dir, Path.iterdir

    def forbidden(path: Path) -> None:
        if "private" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", lambda path: (forbidden(path), is_dir(path))[1])
    monkeypatch.setattr(Path, "iterdir", lambda path: (forbidden(path), iterdir(path))[1])
    assert find_mirror({}) == mirror
    monkeypatch.setattr(terraform, "_MIRROR_PARENTS", (str(tmp_path / "opt" / "private"),))
    assert find_mirror({}) is None


def test_without_a_mirror_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "file").write_text("x")
    (tmp_path / "opt" / "registry.terraform.io").mkdir()
    assert find_mirror({}) is None


# --- the process environment ---------------------------------------------------------------------------------------


def test_where_the_registry_answers_nothing_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_mirror(tmp_path / "opt" / "mirror")
    monkeypatch.setattr(terraform, "registry_answers", lambda: True)
    with terraform_environment() as environ:
        assert "TF_CLI_CONFIG_FILE" not in environ
        assert environ["CHECKPOINT_DISABLE"] == "1"
        assert environ["TF_IN_AUTOMATION"] == "1"
    assert "CHECKPOINT_DISABLE" not in os.environ


def test_where_it_does_not_a_configuration_points_to_the_mirror_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    mirror = a_mirror(tmp_path / "opt" / 'with "quotes"')
    with terraform_environment() as environ:
        config = Path(environ["TF_CLI_CONFIG_FILE"])
        text = config.read_text()
    assert "filesystem_mirror" in text
    assert f"path = {json.dumps(str(mirror))}" in text
    assert not config.exists()
    assert "TF_CLI_CONFIG_FILE" not in os.environ


def test_a_configuration_of_the_users_own_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_mirror(tmp_path / "opt" / "mirror")
    mine = tmp_path / "mine.tfrc"
    mine.write_text("")
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(mine))
    with terraform_environment() as environ:
        assert environ["TF_CLI_CONFIG_FILE"] == str(mine)
    monkeypatch.delenv("TF_CLI_CONFIG_FILE")
    (tmp_path / "user" / ".terraformrc").write_text("")
    with terraform_environment() as environ:
        assert "TF_CLI_CONFIG_FILE" not in environ


def test_a_configuration_file_that_does_not_exist_counts_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(tmp_path / "missing.tfrc"))
    mirror = a_mirror(tmp_path / "opt" / "mirror")
    with terraform_environment() as environ:
        assert str(mirror) in Path(environ["TF_CLI_CONFIG_FILE"]).read_text()
    monkeypatch.setattr(terraform, "registry_answers", lambda: True)
    with terraform_environment() as environ:
        assert "TF_CLI_CONFIG_FILE" not in environ


def test_without_registry_and_mirror_the_error_says_how_to_make_one() -> None:
    message = "registry.terraform.io does not answer, and no mirror.*Set TF_PLUGIN_MIRROR to a directory made with"
    with pytest.raises(OrchestratorError, match=message), terraform_environment():
        pass


def test_without_terraform_the_error_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform.shutil, "which", lambda name: None)
    with pytest.raises(OrchestratorError, match="Terraform is not installed: https://"), terraform_environment():
        pass


# --- outputs -------------------------------------------------------------------------------------------------------


def test_before_the_first_deployment_the_local_environment_has_no_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform, "registry_answers", lambda: True)

    def nothing(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("no Terraform process is needed to know that nothing is deployed")

    monkeypatch.setattr(subprocess, "Popen", nothing)
    assert outputs("local") == {}


def test_the_users_environment_is_as_before_after_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform, "registry_answers", lambda: True)
    before = dict(os.environ)
    outputs("local")
    assert dict(os.environ) == before
    with pytest.raises(KeyError), terraform._terraform("local"):
        raise KeyError
    assert dict(os.environ) == before


def test_reading_outputs_asks_no_registry_once_the_environment_is_initialised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(terraform, "registry_answers", lambda: asked.append(True) or True)
    monkeypatch.setattr(terraform, "_run", lambda tf, command, *_, **__: '{"x": {}}' if command == "output" else "")
    monkeypatch.setenv("TF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(terraform, "environment_dir", lambda environment: tmp_path)
    (tmp_path / "backend.hcl").write_text("")
    assert outputs("dev") == {"x": {}}
    assert asked == [True], "to initialise it, providers may have to be installed"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "terraform.tfstate").write_text("{}")
    assert outputs("dev") == {"x": {}}
    assert asked == [True]


@pytest.fixture
def local_state() -> Path:
    """The state file of a local environment that is deployed, with one output; the real Terraform reads it."""
    home = local_state_dir()
    home.mkdir(parents=True)
    state = {
        "version": 4, "terraform_version": "1.11.4", "serial": 1, "lineage": "x", "resources": [],
        "outputs": {"deployment": {"value": {"schema": 1}, "type": ["object", {"schema": "number"}]}},
    }  # fmt: skip
    (home / "terraform.tfstate").write_text(json.dumps(state))
    return home / "terraform.tfstate"


def test_the_local_outputs_are_read_without_configuration_or_providers(
    local_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_DATA_DIR", str(local_state.parent / "somewhere"))
    assert outputs("local")["deployment"]["value"] == {"schema": 1}
    assert sorted(path.name for path in local_state.parent.iterdir()) == ["terraform.tfstate"], "no init was run"


def test_a_local_state_that_cannot_be_read_is_not_deployed(local_state: Path) -> None:
    local_state.write_text("not a state")
    with pytest.raises(NotDeployed, match="Environment local: its Terraform state cannot be read"):
        outputs("local")


def test_what_was_planned_and_confirmed_is_what_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, tuple[str, ...], dict[str, Any]]] = []
    monkeypatch.setattr(terraform, "registry_answers", lambda: True)
    monkeypatch.setattr(terraform, "_run", lambda tf, command, *args, **options: runs.append((command, args, options)))
    terraform.apply("local", {"clients": 3}, confirm=lambda: runs.append(("confirmed", (), {})))
    assert [command for command, _, _ in runs] == ["init", "plan", "confirmed", "apply"]
    assert runs[1][2]["var"] == {"clients": 3}
    assert runs[3][1] == (runs[1][2]["out"],), "the plan that was shown"
    assert "var" not in runs[3][2]
    assert not Path(runs[1][2]["out"]).parent.exists()


def test_a_plan_that_is_not_confirmed_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []
    monkeypatch.setattr(terraform, "registry_answers", lambda: True)
    monkeypatch.setattr(terraform, "_run", lambda tf, command, *_, **__: commands.append(command))

    def no() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        terraform.apply("local", {}, confirm=no)
    assert commands == ["init", "plan"]
    terraform.apply("local", {}, plan_only=True, confirm=no)
    assert commands == ["init", "plan"] * 2


def test_a_lock_file_is_used_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(terraform, "registry_answers", lambda: True)
    monkeypatch.setattr(terraform, "_run", lambda tf, command, *_, **options: runs.append(options) or "{}")
    terraform.apply("local", {}, plan_only=True)
    assert runs[0]["lockfile"] == "readonly"
    monkeypatch.setattr(terraform, "ENVIRONMENTS", tmp_path)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "terraform.tfvars").touch()
    runs.clear()
    terraform.apply("local", {}, plan_only=True)
    assert "lockfile" not in runs[0]


def test_an_environment_without_a_backend_is_not_deployed_and_says_what_to_copy() -> None:
    with pytest.raises(NotDeployed, match=r"dev is not set up here.*backend\.hcl\.example"):
        outputs("dev")
