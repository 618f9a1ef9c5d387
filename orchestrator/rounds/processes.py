"""Processes, as orchestrators on one machine or on several know of each other."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from lambdas.protocol.lease import Process


def this_process() -> Process:
    """This process, as others are told of it."""
    pid = os.getpid()
    return Process(socket.gethostname(), pid, _machine(), _started(pid) or "", time.time())


def is_gone(process: Process) -> bool:
    """Whether a process of this very machine has ended; False for those of other machines."""
    if process.machine != _machine():
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    started = _started(process.pid)
    return started is not None and started != process.started


def _machine() -> str:
    """Equal for processes that see each other's process ids: same host, same boot, same namespace (containers)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process was started, as Linux counts it (proc(5), field 22); None where that cannot be known.

    Process ids are used again, and a zombie has ended although it can be found.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in ("Z", "X") else fields[19]
