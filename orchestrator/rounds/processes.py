"""How processes identify each other, on one machine or on several."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from lambdas.protocol.lease import Process


def this_process() -> Process:
    """This process, as the coordinator record names it."""
    pid = os.getpid()
    return Process(socket.gethostname(), pid, _machine(), _started(pid) or "", time.time())


def is_gone(process: Process) -> bool:
    """Whether a process of this machine has ended; False for processes of other machines."""
    if process.machine != _machine():
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # It runs, as another user.
        return False
    started = _started(process.pid)
    return started is not None and started != process.started


def _machine() -> str:
    """Equal for processes that see each other's process ids: same host, same boot, same process namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """The start time of a process in Linux's clock ticks (proc(5), field 22); None where it cannot be read.

    The start time is needed because process ids are reused. A zombie still has an id, but counts as ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in ("Z", "X") else fields[19]
