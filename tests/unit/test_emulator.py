"""The embedded AWS of one home directory: start, status, stop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import emulator
from orchestrator.aws import connect
from orchestrator.errors import BadInput, OrchestratorError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own; whatever was started in it is stopped."""
    monkeypatch.setenv("FEDAGG_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    emulator.stop()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_starting_twice_gives_the_same_emulator_and_stopping_ends_it(home: Path) -> None:
    assert emulator.running() is None
    first = emulator.start()
    assert emulator.start() == first
    assert emulator.running() == first
    assert first.log == str(home / "emulator.log")
    connect("us-east-1", first.url).s3.create_bucket(Bucket="some-bucket")
    assert emulator.stop()
    assert emulator.running() is None
    assert not alive(first.pid)
    assert not emulator.stop()


def test_stopping_forgets_what_was_deployed_and_a_new_one_starts_empty(home: Path) -> None:
    first = emulator.start()
    connect("us-east-1", first.url).s3.create_bucket(Bucket="some-bucket")
    (home / "terraform").mkdir()
    for name in ("terraform.tfstate", "terraform.tfstate.backup"):
        (home / name).write_text("{}")
    emulator.stop()
    assert sorted(path.name for path in home.iterdir()) == ["emulator.log"]
    second = emulator.start()
    assert connect("us-east-1", second.url).s3.list_buckets()["Buckets"] == []


def test_where_the_usual_port_is_taken_another_one_is_used(
    home: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "DEFAULT_PORT", taken_port)
    started = emulator.start()
    assert not started.url.endswith(f":{taken_port}")
    assert emulator.running() == started


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(home: Path, taken_port: int) -> None:
    with pytest.raises(BadInput, match=f"Port {taken_port} is taken. Choose another one, or none"):
        emulator.start(taken_port)
    assert emulator.running() is None


def test_a_port_that_was_asked_for_is_used(home: Path) -> None:
    port = emulator._free_port()
    assert emulator.start(port).url == f"http://127.0.0.1:{port}"


def test_two_homes_have_an_emulator_each(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = emulator.start()
    monkeypatch.setenv("FEDAGG_HOME", str(tmp_path / "other"))
    assert emulator.running() is None
    second = emulator.start()
    assert second.url != first.url
    assert emulator.stop()
    monkeypatch.setenv("FEDAGG_HOME", str(home))
    assert emulator.running() == first


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"pid": 1}', '{"pid":1,"url":"u","log":"l","more":1}', "null"])
def test_a_record_that_does_not_parse_is_no_emulator(home: Path, text: str) -> None:
    home.mkdir()
    (home / "emulator.json").write_text(text)
    assert emulator.running() is None
    assert not emulator.stop()


def test_a_stale_record_of_another_process_is_not_trusted_and_that_process_lives_on(home: Path) -> None:
    home.mkdir()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        record = {"pid": other.pid, "url": "http://127.0.0.1:9", "log": "x"}
        (home / "emulator.json").write_text(json.dumps(record))
        assert emulator.running() is None
        assert not emulator.stop()
        assert other.poll() is None
        assert not (home / "emulator.json").exists()
    finally:
        other.kill()
        other.communicate()


def test_a_record_of_a_process_that_has_ended_is_replaced(home: Path) -> None:
    home.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (home / "emulator.json").write_text(json.dumps({"pid": gone.pid, "url": "http://127.0.0.1:9", "log": "x"}))
    (home / "terraform.tfstate").write_text("{}")
    started = emulator.start()
    assert started.pid != gone.pid
    assert emulator.running() == started
    assert not (home / "terraform.tfstate").exists(), "the state of the emulator that is gone"


def test_an_emulator_that_died_is_noticed(home: Path) -> None:
    started = emulator.start()
    emulator._end(started.pid)
    assert emulator.running() is None
    assert emulator.start().pid != started.pid


def test_an_emulator_that_does_not_come_up_is_an_error_with_the_end_of_its_log(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho it is broken\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(emulator.sys, "executable", str(broken))
    with pytest.raises(OrchestratorError, match=r"did not come up; its log .*emulator.log ends with:\nit is broken"):
        emulator.start()
    assert emulator.running() is None


def test_without_the_package_the_error_says_how_to_install_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"not installed: pip install 'fedagg.emulator.'"):
        emulator.start()


def test_the_emulator_does_not_see_the_users_aws_credentials(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-user")
    monkeypatch.setenv("AWS_PROFILE", "production")
    started = emulator.start()
    environ = Path(f"/proc/{started.pid}/environ")
    if environ.exists():
        assert b"AWS_" not in environ.read_bytes()
    assert emulator.running() == started
