"""Starts, finds and stops the emulator of AWS on this machine.

`EMULATOR=ministack` (default) starts MiniStack, and `EMULATOR=localstack` starts LocalStack 4.14.0. `AWS_ENDPOINT_URL`
names an emulator that is already running; it is used as it is and never stopped.

An emulator that is started here belongs to one home directory (`orchestrator.paths.state_home()`), which holds its
process id, its log and the Terraform state of what is deployed in it. The emulator keeps everything in memory, so all
of this is deleted when it stops.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.emulators import localstack, ministack
from orchestrator.emulators.daemon import Launch, command_of, end, free_port, is_free
from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.paths import state_home
from orchestrator.progress import Narration

KINDS = ("ministack", "localstack")
DEFAULT_PORT = 4566
_START_TIMEOUT_S = 120
_HEALTH = "/_localstack/health"  # MiniStack has this path, too
# What an emulator leaves in its home directory: its record, and the Terraform state of what was deployed in it.
_LEFT_FILES = (
    "emulator.json",
    "deployment.json",
    "terraform.tfstate",
    "terraform.tfstate.backup",
    ".terraform.tfstate.lock.info",
)
_LEFT_DIRECTORIES = ("terraform", "localstack")


@dataclass(frozen=True)
class Emulator:
    """A running emulator.

    Attributes:
        kind: one of KINDS.
        pid, log: process id and log file; None if it was not started here.
    """

    kind: str
    url: str
    pid: int | None = None
    log: str | None = None


def chosen() -> str:
    """The kind that `EMULATOR` names; raises BadInput if it is not one of KINDS."""
    kind = os.environ.get("EMULATOR") or KINDS[0]
    if kind not in KINDS:
        raise BadInput(f"EMULATOR={kind}: expected {' or '.join(KINDS)}.")
    return kind


def running() -> Emulator | None:
    """The emulator that `AWS_ENDPOINT_URL` names, else that of this home; None if it does not answer."""
    url = os.environ.get("AWS_ENDPOINT_URL")
    if url:
        url = url.rstrip("/")
        if not _answers(url + _HEALTH):
            return None
        # Only MiniStack has a health path of its own.
        return Emulator("ministack" if _answers(f"{url}/_ministack/health") else "localstack", url)
    record = _read_record()
    return record[0] if record and _is_ours(record[0]) and _answers(record[0].url + _HEALTH) else None


def require() -> Emulator:
    """The emulator that `running` finds; raises BadInput if there is none."""
    found, url = running(), os.environ.get("AWS_ENDPOINT_URL")
    if found is not None:
        return found
    if url:
        raise BadInput(f"AWS_ENDPOINT_URL={url} does not answer. Unset the variable to start an emulator here.")
    raise BadInput(
        "No emulator is running. Start one with `orchestrator emulator start`, or set AWS_ENDPOINT_URL to one that "
        "runs elsewhere."
    )


def start(port: int | None = None, narration: Narration | None = None) -> Emulator:
    """Start an emulator and wait until it is healthy. An emulator that is already running is returned.

    Args:
        port: None: 4566, or another free port if that is taken.

    Raises:
        BadInput: `port` is taken, an emulator of the other kind is running, or a required package is not installed.
        OrchestratorError: the emulator did not start; the message ends with its log.
    """
    kind = chosen()
    if os.environ.get("AWS_ENDPOINT_URL"):
        return require()
    existing = running()
    if existing is not None:
        if existing.kind != kind:
            raise BadInput(
                f"{existing.kind} is running here. Stop it (`orchestrator emulator stop`) before you start {kind}."
            )
        return existing
    if port is not None and not is_free(port):
        raise BadInput(f"Port {port} is taken. Choose another port, or leave it out to use a free one.")
    port = port or (DEFAULT_PORT if is_free(DEFAULT_PORT) else free_port())
    stop()
    home = state_home()
    _forget(home)  # also deletes what is left of an emulator that was killed
    home.mkdir(parents=True, exist_ok=True)
    if kind == "localstack":
        launch = localstack.prepare(port, home, narration or Narration())
    else:
        launch = ministack.prepare(port)
    process, emulator = _launched(launch, kind, port, home / "emulator.log")
    try:
        _wait_until_healthy(process, emulator)
    except BaseException:
        end(process.pid)
        stop()
        raise
    return emulator


def _launched(launch: Launch, kind: str, port: int, log: Path) -> tuple[subprocess.Popen[bytes], Emulator]:
    """Start the emulator's process and record it."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            launch.command,
            env={**launch.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal reaches only the command, which stops the emulator
        )
    emulator = Emulator(kind, f"http://127.0.0.1:{port}", process.pid, str(log))
    _record().write_text(json.dumps({**asdict(emulator), "cleanup": launch.cleanup}))
    return process, emulator


def _wait_until_healthy(process: subprocess.Popen[bytes], emulator: Emulator) -> None:
    # Two answers are required: if another process took the port first, that one answers while this emulator exits.
    healthy, deadline = 0, time.monotonic() + _START_TIMEOUT_S
    while healthy < 2:
        if process.poll() is not None or time.monotonic() > deadline:
            log = Path(emulator.log or "")
            end_of_log = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise OrchestratorError(f"The emulator did not start; its log {log} ends with:\n{end_of_log}")
        time.sleep(0.2)
        healthy = healthy + 1 if _answers(emulator.url + _HEALTH) else 0


def stop() -> bool:
    """Stop this home's emulator and delete its record and Terraform state; returns whether one was running."""
    record = _read_record()
    if record is None:
        return False
    emulator, cleanup = record
    ours = _is_ours(emulator)
    if ours and emulator.pid is not None:
        end(emulator.pid)
    if cleanup:
        subprocess.run(cleanup, capture_output=True, check=False)
    _forget(state_home())
    return ours


def _record() -> Path:
    return state_home() / "emulator.json"


def _read_record() -> tuple[Emulator, list[str] | None] | None:
    """The emulator that was started in this home, and its cleanup command."""
    try:
        document = json.loads(_record().read_text())
        cleanup = document.pop("cleanup")
        return Emulator(**document), cleanup
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _forget(home: Path) -> None:
    for name in _LEFT_FILES:
        (home / name).unlink(missing_ok=True)
    for name in _LEFT_DIRECTORIES:
        shutil.rmtree(home / name, ignore_errors=True)


def _is_ours(emulator: Emulator) -> bool:
    return emulator.pid is not None and emulator.kind in command_of(emulator.pid)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # an emulator's URL  # noqa: S310  # nosec B310
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False
