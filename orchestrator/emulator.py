"""The embedded AWS: MiniStack, a PyPI package, as a process of its own on the loopback interface. No Docker.

One emulator belongs to one home directory (`terraform.state_home()`), which holds its process id, its log and the
Terraform state of what is deployed in it: the emulator keeps everything in memory, so they live and die together.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.terraform import state_home

DEFAULT_PORT = 4566
_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 10


@dataclass(frozen=True)
class Emulator:
    """A running emulator."""

    pid: int
    url: str
    log: str


def running() -> Emulator | None:
    """The emulator of this home, None where it does not run."""
    try:
        emulator = Emulator(**json.loads(_record().read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return emulator if _is_ours(emulator.pid) and _healthy(emulator.url) else None


def start(port: int | None = None) -> Emulator:
    """Start the emulator, on `port` or 4566, or a free port where that is taken. A running one is returned as it is.

    Raises:
        BadInput: the port that was asked for is taken, or the package is not installed.
        OrchestratorError: it does not come up; names its log.
    """
    existing = running()
    if existing is not None:
        return existing
    if find_spec("ministack") is None:
        raise BadInput("The embedded emulator is not installed: pip install 'fedagg[emulator]'.")
    if port is not None and not _is_free(port):
        raise BadInput(f"Port {port} is taken. Choose another one, or none to let the system choose.")
    chosen = port or (DEFAULT_PORT if _is_free(DEFAULT_PORT) else _free_port())
    home = state_home()
    _forget(home)
    home.mkdir(parents=True, exist_ok=True)
    log = home / "emulator.log"
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LAMBDA_"))},
        "GATEWAY_PORT": str(chosen),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "LAMBDA_EXECUTOR": "local",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),  # noqa: S108 - the system's default
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for the command, which stops the emulator in order
        )
    emulator = Emulator(process.pid, f"http://127.0.0.1:{chosen}", str(log))
    deadline = time.monotonic() + _START_TIMEOUT_S
    try:
        # Healthy twice, with a pause: where somebody else took the port first, that one answers while ours gives up.
        healthy = 0
        while healthy < 2:
            if process.poll() is not None or time.monotonic() > deadline:
                raise OrchestratorError(f"The emulator did not come up; its log {log} ends with:\n{_tail(log)}")
            time.sleep(0.2)
            healthy = healthy + 1 if _healthy(emulator.url) else 0
    except BaseException:
        _end(process.pid)
        raise
    _record().write_text(json.dumps(asdict(emulator)))
    return emulator


def stop() -> bool:
    """Stop this home's emulator and forget what was deployed in it; whether one was running."""
    try:
        pid = Emulator(**json.loads(_record().read_text())).pid
    except (OSError, ValueError, TypeError):
        return False
    ours = _is_ours(pid)
    if ours:
        _end(pid)
    _forget(state_home())
    return ours


def _record() -> Path:
    return state_home() / "emulator.json"


def _forget(home: Path) -> None:
    for name in ("emulator.json", "terraform.tfstate", "terraform.tfstate.backup", ".terraform.tfstate.lock.info"):
        (home / name).unlink(missing_ok=True)
    shutil.rmtree(home / "terraform", ignore_errors=True)


def _is_ours(pid: int) -> bool:
    """Whether that process is an emulator: process ids are used again."""
    try:
        command = subprocess.run(
            ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return False
    return "ministack" in command


def _end(pid: int) -> None:
    """End the emulator and the function processes that it started."""
    for signum, patience in ((signal.SIGTERM, _STOP_TIMEOUT_S), (signal.SIGKILL, 2)):
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # reaps it where it is our child
            try:
                os.killpg(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_localstack/health", timeout=2) as response:  # noqa: S310 - loopback
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-20:])
