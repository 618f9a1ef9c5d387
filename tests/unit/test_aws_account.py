"""`make test-aws` touches no account that nobody named."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.paths import ROOT
from tests import aws_account
from tests.support.deployed import SHARD_COUNTS


@pytest.fixture
def recorder() -> Iterator[SimpleNamespace]:
    """An AWS that answers nothing and writes down who asked."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            requests.append(str(self.client_address))
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", requests=requests)
    server.shutdown()
    server.server_close()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An environment with a backend; what Terraform and pytest are asked to do in it."""
    asked: list[Any] = []
    (tmp_path / "backend.hcl").write_text("")

    def terraform(arguments: Any, directory: Path, **variables: str) -> Any:
        asked.append((arguments[0], *arguments[1:]))
        return SimpleNamespace(returncode=0, stderr="")

    def popen(command: list[str], env: dict[str, str], **options: Any) -> Any:
        asked.append(("tests", env["FEDAGG_TEST_ENV"], env["FEDAGG_TEST_PREFIX"], "TF_DATA_DIR" in env))
        return SimpleNamespace(wait=lambda: 1)

    monkeypatch.setattr(aws_account, "environment_dir", lambda name: tmp_path)
    monkeypatch.setattr(aws_account, "run_terraform", terraform)
    monkeypatch.setattr(aws_account.subprocess, "Popen", popen)
    return asked


def test_without_a_confirmation_it_says_what_it_would_create_and_cost_and_touches_nothing(
    recorder: SimpleNamespace, tmp_path: Path
) -> None:
    terraform = tmp_path / "terraform"
    terraform.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    terraform.chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if name != "CONFIRM_ACCOUNT"}
    environ |= {"AWS_ENDPOINT_URL": recorder.url, "TMPDIR": str(tmp_path), "PATH": f"{tmp_path}:{environ['PATH']}"}
    environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.aws_account", "--env", "dev"], env=environ, cwd=ROOT, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2
    assert "Nothing was created. To go on, say which account it is: CONFIRM_ACCOUNT=" in result.stderr
    prefix = re.findall(r"workspace (fedagg-test-[0-9a-f]{6})", result.stderr)[0]
    for shards in SHARD_COUNTS:
        assert f"{prefix}-shards-{shards}" in result.stderr
    assert re.search(r"cost less than \$\d+\.\d\d", result.stderr)
    assert f"orchestrator destroy --env dev --yes --var name_prefix={prefix}" in result.stderr
    assert recorder.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["terraform"], "neither Terraform nor a file"


@pytest.mark.parametrize("account", ["yes", "12345678901", "1234567890123", "\u0661" * 12])
def test_what_is_no_account_id_is_no_confirmation(account: str) -> None:
    with pytest.raises(BadInput, match=r"expected 12 digits. Nothing was created"):
        aws_account.confirmed_account({"CONFIRM_ACCOUNT": account}, terminal=False)


def test_another_account_than_the_confirmed_one_is_refused_before_anything_is_created(
    calls: list[Any], endpoint_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("CONFIRM_ACCOUNT", "123456789012")
    with pytest.raises(BadInput, match=r"those of account 000000000000, not of 123456789012. Nothing was created"):
        aws_account.run("dev")
    assert calls == []


def test_the_workspace_goes_when_the_tests_fail_too(
    calls: list[Any], endpoint_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("CONFIRM_ACCOUNT", "000000000000")
    assert aws_account.run("dev") == 1
    prefix = calls[1][2]
    assert calls == [
        ("init", "-input=false", "-backend-config=backend.hcl"),
        ("workspace", "new", prefix),
        ("tests", "dev", prefix, True),
        ("workspace", "select", "default"),
        ("workspace", "delete", prefix),
    ]


def test_what_terraform_refuses_is_an_error_in_its_own_words(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = SimpleNamespace(returncode=1, stderr="Error: Workspace is not empty\n")
    monkeypatch.setattr(aws_account, "run_terraform", lambda *_, **__: refused)
    with pytest.raises(OrchestratorError, match="terraform workspace select default failed:\nError: Workspace is not"):
        aws_account.Workspace("dev", "w", tmp_path).delete()


def test_the_local_environment_is_no_account() -> None:
    with pytest.raises(BadInput, match="ENV=dev"):
        aws_account.run("local")
