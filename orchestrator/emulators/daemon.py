"""Processes that continue to run after the command that started them has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

_STOP_TIMEOUT_S = 30


@dataclass(frozen=True)
class Launch:
    """How to start an emulator.

    Attributes:
        command: runs until it gets SIGTERM.
        cleanup: runs after it has ended; None if nothing is left to clean up.
    """

    command: list[str]
    environ: dict[str, str]
    cleanup: list[str] | None = None


def without_aws(environ: Mapping[str, str]) -> dict[str, str]:
    """A process environment without the user's AWS settings and credentials."""
    return {name: value for name, value in environ.items() if not name.startswith(("AWS_", "LAMBDA_"))}


def command_of(pid: int) -> str:
    """The command line of a process, empty if there is no such process. Tells whether a process id was reused."""
    try:
        return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def end(pid: int) -> None:
    """End the process group that a process leads: with SIGTERM, and after 30 seconds with SIGKILL."""
    for signum, patience in ((signal.SIGTERM, _STOP_TIMEOUT_S), (signal.SIGKILL, 2)):
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # reaps the process if it is a child of this one
            try:
                os.killpg(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def is_free(port: int) -> bool:
    """Whether no process listens on a port of the loopback interface."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port
