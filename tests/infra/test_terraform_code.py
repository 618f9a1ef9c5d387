"""fmt, validate and test of every Terraform module and environment, with the real provider and no account."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.deployment.terraform import environment_dir, run_terraform
from orchestrator.errors import BadInput
from orchestrator.paths import ROOT

ENVIRONMENTS = sorted(path.parent for path in (ROOT / "environments").glob("*/terraform.tfvars"))
SHARED = ROOT / "environments/shared"


def _terraform(*arguments: str, directory: Path, data: Path) -> str:
    result = run_terraform(
        [*arguments, "-no-color"], directory, TF_DATA_DIR=str(data), AWS_EC2_METADATA_DISABLED="true"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_all_terraform_is_formatted(tmp_path: Path) -> None:
    for directory in ("infra", "environments"):
        _terraform("fmt", "-check", "-diff", "-recursive", directory=ROOT / directory, data=tmp_path)


@pytest.mark.parametrize("directory", [ROOT / "infra", *ENVIRONMENTS], ids=lambda path: path.name)
def test_every_environment_and_module_validates(directory: Path, tmp_path: Path) -> None:
    _terraform("init", "-backend=false", "-input=false", "-lockfile=readonly", directory=directory, data=tmp_path)
    assert "The configuration is valid" in _terraform("validate", directory=directory, data=tmp_path)


def test_terraforms_own_tests_pass(tmp_path: Path) -> None:
    _terraform("init", "-input=false", "-lockfile=readonly", directory=ROOT / "infra", data=tmp_path)
    out = _terraform("test", directory=ROOT / "infra", data=tmp_path)
    assert "Success!" in out
    assert " 0 passed" not in out


def test_a_round_that_fails_fails_the_sample_workflow() -> None:
    """GitHub's shell is `bash -e` unless a step names bash: then a pipe fails with its first command."""
    steps = (ROOT / "docs/examples/round.yml").read_text().split("      - ")
    piped = [step for step in steps if " | tee " in step]
    assert len(piped) == 1
    assert all("        shell: bash" in step for step in piped)


def test_environments_are_the_shared_files_and_values_of_their_own() -> None:
    assert [directory.name for directory in ENVIRONMENTS] == ["dev", "local", "prod", "staging"]
    assert all(environment_dir(directory.name) == directory for directory in ENVIRONMENTS)
    for directory in ENVIRONMENTS:
        for path in SHARED.glob("*.tf"):
            if (directory.name, path.name) != ("local", "versions.tf"):  # its provider and its state are the emulator's
                assert (directory / path.name).readlink() == Path("../shared", path.name)
        assert {path.name for path in directory.glob("*.tf")} == {path.name for path in SHARED.glob("*.tf")}


def test_one_lock_file_pins_the_provider_for_all_platforms() -> None:
    lock = (SHARED / ".terraform.lock.hcl").read_text()
    assert re.findall(r'provider "(.*)"', lock) == ["registry.terraform.io/hashicorp/aws"]
    assert 'version     = "5.100.0"' in lock
    # HashiCorp's packages for 14 platforms, and their manifest.
    assert len(re.findall(r'"zh:[0-9a-f]{64}"', lock)) == 15
    for directory in [*ENVIRONMENTS, ROOT / "infra"]:
        assert (directory / ".terraform.lock.hcl").is_symlink(), "terraform init without -lockfile=readonly replaced it"
        assert (directory / ".terraform.lock.hcl").read_text() == lock


def test_the_sample_workflow_pins_actions_by_commit() -> None:
    workflow = (ROOT / "docs/examples/round.yml").read_text()
    uses = re.findall(r"uses: (\S+)(?: # (\S+))?", workflow)
    assert len(uses) == 5
    for action, version in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r"v\d+\.\d+\.\d+", version), action


def test_a_directory_of_shared_files_is_no_environment() -> None:
    with pytest.raises(BadInput, match="No environment 'shared'; there are: dev, local, prod, staging"):
        environment_dir("shared")


def test_the_state_is_locked_and_its_key_is_the_one_that_the_ci_role_may_read() -> None:
    assert "use_lockfile = true" in (SHARED / "versions.tf").read_text()
    for directory in ENVIRONMENTS:
        if directory.name != "local":
            key = f'"fedagg/{directory.name}/terraform.tfstate"'
            assert f"key    = {key}" in (directory / "backend.hcl.example").read_text()
            assert f"terraform_state_key = {key}" in (directory / "terraform.tfvars").read_text()


def test_the_terraform_reference_is_current() -> None:
    result = subprocess.run(
        [sys.executable, "docs/terraform_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
