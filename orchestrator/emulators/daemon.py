"""Processes that outlive the command that starts them: how to start an emulator, and how to end it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_STOP_TIMEOUT_S = 30


@dataclass(frozen=True)
class Launch:
    """How to start an emulator: a command that runs until it gets SIGTERM, and one that tidies up after it."""

    command: list[str]
    environ: dict[str, str]
    cleanup: list[str] | None = None


def without_aws(environ: Mapping[str, str]) -> dict[str, str]:
    """A process environment without the user's AWS settings and credentials."""
    return {name: value for name, value in environ.items() if not name.startswith(("AWS_", "LAMBDA_"))}


def command_of(pid: int) -> str:
    """The command line of a process, empty where there is none: process ids are used again."""
    try:
        return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def end(pid: int) -> None:
    """End a process that leads a group, and the group."""
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


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback interface."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port


def tail(path: Path) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-20:])
