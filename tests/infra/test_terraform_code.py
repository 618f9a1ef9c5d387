"""fmt, validate and test of every Terraform module and environment, with the real provider and no account."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.deployment.terraform import run_terraform
from orchestrator.paths import ROOT

ROOTS = [ROOT / "infra", *sorted(path.parent for path in (ROOT / "environments").glob("*/main.tf"))]


def _terraform(*arguments: str, directory: Path, data: Path) -> str:
    result = run_terraform(
        [*arguments, "-no-color"], directory, TF_DATA_DIR=str(data), AWS_EC2_METADATA_DISABLED="true"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_all_terraform_is_formatted(tmp_path: Path) -> None:
    for directory in ("infra", "environments"):
        _terraform("fmt", "-check", "-diff", "-recursive", directory=ROOT / directory, data=tmp_path)


@pytest.mark.parametrize("directory", ROOTS, ids=lambda path: path.name)
def test_every_environment_and_module_validates(directory: Path, tmp_path: Path) -> None:
    _terraform("init", "-backend=false", "-input=false", directory=directory, data=tmp_path)
    assert "The configuration is valid" in _terraform("validate", directory=directory, data=tmp_path)


def test_terraforms_own_tests_pass(tmp_path: Path) -> None:
    _terraform("init", "-input=false", directory=ROOT / "infra", data=tmp_path)
    out = _terraform("test", directory=ROOT / "infra", data=tmp_path)
    assert "Success!" in out
    assert " 0 passed" not in out


def test_a_round_that_fails_fails_the_sample_workflow() -> None:
    """GitHub's shell is `bash -e` unless a step names bash: then a pipe fails with its first command."""
    steps = (ROOT / "docs/examples/round.yml").read_text().split("      - ")
    piped = [step for step in steps if " | tee " in step]
    assert len(piped) == 1
    assert all("        shell: bash" in step for step in piped)


def test_every_environment_has_the_same_shape() -> None:
    for directory in ROOTS[1:]:
        files = {path.name for path in directory.glob("*.tf")}
        assert files == {"main.tf", "variables.tf", "outputs.tf", "versions.tf"}, directory.name
        assert 'output "deployment"' in (directory / "outputs.tf").read_text()
        if directory.name != "local":
            assert "use_lockfile" in (directory / "versions.tf").read_text(), "remote state with a lock"
