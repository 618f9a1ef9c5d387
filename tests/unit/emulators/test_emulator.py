"""The emulator of one home directory, or elsewhere: start, status, stop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.aws.clients import connect
from orchestrator.deployment.terraform import local_state_dir
from orchestrator.emulators import emulator, localstack, ministack
from orchestrator.emulators.daemon import end, free_port
from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.paths import state_home
from orchestrator.progress import Narration


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own; whatever was started in it is stopped."""
    monkeypatch.setenv("FEDAGG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EMULATOR", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    yield tmp_path / "home"
    emulator.stop()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


def record(pid: int, kind: str = "ministack") -> str:
    return json.dumps({"kind": kind, "pid": pid, "url": "http://127.0.0.1:9", "log": "x", "cleanup": None})


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
    for name in ("terraform.tfstate", "terraform.tfstate.backup", "deployment.json"):
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
    with pytest.raises(BadInput, match=f"Port {taken_port} is taken. Choose another port"):
        emulator.start(taken_port)
    assert emulator.running() is None


def test_a_port_that_was_asked_for_is_used(home: Path) -> None:
    port = free_port()
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


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"pid": 1}', '{"pid":1,"url":"u","log":"l","more":1,"cleanup":null}', "null"]
)
def test_a_record_that_does_not_parse_is_no_emulator(home: Path, text: str) -> None:
    home.mkdir()
    (home / "emulator.json").write_text(text)
    assert emulator.running() is None
    assert not emulator.stop()


def test_a_stale_record_of_another_process_is_not_trusted_and_that_process_lives_on(home: Path) -> None:
    home.mkdir()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        (home / "emulator.json").write_text(record(other.pid))
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
    (home / "emulator.json").write_text(record(gone.pid))
    (home / "terraform.tfstate").write_text("{}")
    started = emulator.start()
    assert started.pid != gone.pid
    assert emulator.running() == started
    assert not (home / "terraform.tfstate").exists(), "the state of the emulator that is gone"


def test_an_emulator_that_died_is_noticed(home: Path) -> None:
    started = emulator.start()
    end(started.pid)
    assert emulator.running() is None
    assert emulator.start().pid != started.pid


def test_an_emulator_that_does_not_come_up_is_an_error_with_the_end_of_its_log(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho it is broken\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(ministack.sys, "executable", str(broken))
    with pytest.raises(OrchestratorError, match=r"did not start; its log .*emulator.log ends with:\nit is broken"):
        emulator.start()
    assert emulator.running() is None


def test_without_the_package_the_error_says_how_to_install_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ministack, "find_spec", lambda name: None)
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


# --- which one -----------------------------------------------------------------------------------------------------


def test_an_emulator_that_does_not_exist_names_those_that_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATOR", "moto")
    with pytest.raises(BadInput, match="EMULATOR=moto: expected ministack or localstack"):
        emulator.start()


def test_another_kind_than_the_one_that_runs_is_an_error_and_that_one_lives_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = emulator.start()
    monkeypatch.setenv("EMULATOR", "localstack")
    with pytest.raises(BadInput, match=r"ministack is running here. Stop it .* before you start localstack"):
        emulator.start()
    assert emulator.running() == first


def test_one_that_runs_elsewhere_is_used_and_never_stopped(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = emulator.start()
    monkeypatch.setenv("FEDAGG_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{theirs.url}/")
    monkeypatch.setenv("EMULATOR", "localstack")
    try:
        used = emulator.start()
        assert used == emulator.Emulator("ministack", theirs.url, None, None)
        assert emulator.running() == used
        assert not emulator.stop()
        assert emulator.running() == used
    finally:
        monkeypatch.setenv("FEDAGG_HOME", str(home))


def test_one_elsewhere_that_does_not_answer_is_an_error_and_nothing_is_started(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert emulator.running() is None
    with pytest.raises(BadInput, match=r"AWS_ENDPOINT_URL=http://127.0.0.1:\d+ does not answer. Unset"):
        emulator.start()
    assert not home.exists()


def test_what_is_deployed_elsewhere_has_a_state_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_state_dir() == state_home()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://localstack.example.com:4566")
    first = local_state_dir()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://localstack.example.com:4567")
    assert len({first, local_state_dir(), state_home()}) == 3
    assert first.is_relative_to(state_home())


# --- LocalStack: with Docker, and without --------------------------------------------------------------------------


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that writes down what it is called with, and runs until it is ended; nothing answers on its port."""
    calls = tmp_path / "calls"
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$LOCALSTACK_PORT $@" >> {calls}\ncase "$*" in *" up "*) echo up; exit 4;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("EMULATOR", "localstack")
    return calls


def test_with_a_docker_engine_localstack_is_the_image_that_the_compose_file_pins(home: Path, docker: Path) -> None:
    port = free_port()
    with pytest.raises(OrchestratorError, match=r"did not start; its log .* ends with:\nup"):
        emulator.start(port)
    calls = docker.read_text().splitlines()
    compose = f"{port} compose --project-name fedagg-localstack-"
    assert [call.split()[-1] for call in calls[:2]] == ["info", "version"]
    assert all(call.startswith(compose) and "localstack_runtime/compose.yml" in call for call in calls[2:4])
    assert [call.split("compose.yml ")[1] for call in calls[2:]] == [
        "pull --quiet",
        "up --force-recreate",
        "down --volumes",
    ]
    pinned = (localstack.FILES / "compose.yml").read_text()
    assert f"image: localstack/localstack:{localstack.VERSION}\n" in pinned
    assert '"127.0.0.1:${LOCALSTACK_PORT' in pinned


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localstack, "has_docker", lambda: False)
    monkeypatch.setenv("EMULATOR", "localstack")


def test_without_docker_and_without_its_python_the_error_says_what_to_do(
    home: Path, no_docker: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(localstack, "VENV", tmp_path / "venv")
    monkeypatch.setenv("LOCALSTACK_PYTHON", "/nowhere/python")
    with pytest.raises(BadInput, match=r"under Python 3.13. No Docker engine answers.*was not found.*AWS_ENDPOINT_URL"):
        emulator.start()
    assert not (tmp_path / "venv").exists()


def test_an_installation_that_fails_is_an_error_with_pips_words_and_is_tried_again(
    no_docker: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in -c*) echo "(3, 13)";; *) echo "no space left" >&2; exit 1;; esac\n')
    python.chmod(0o755)
    monkeypatch.setattr(localstack, "VENV", tmp_path / "venv")
    monkeypatch.setenv("LOCALSTACK_PYTHON", str(python))
    for _ in range(2):
        with pytest.raises(OrchestratorError, match=r"LocalStack 4.14.0 could not be installed:\nno space left"):
            localstack.install(Narration())


def test_the_releases_that_are_installed_are_those_that_are_named() -> None:
    pins = (localstack.FILES / "requirements.txt").read_text()
    assert f"localstack-core[runtime]=={localstack.VERSION}\n" in pins
