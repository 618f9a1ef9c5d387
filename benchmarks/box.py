"""Limits CPU share, memory and network to those of a Lambda function, with namespaces and cgroups.

Lambda gives a function memory / 1769 of a core, about 600 Mbit/s and 1,024 file descriptors. As root, on Linux with
`ip` and `tc`, `Box` limits all of them: two network namespaces are joined by a link that is shaped at both ends, and a
cgroup (version 1 or 2) has a CPU quota and a memory limit. What cannot be limited is listed, and the measurement runs
without that limit. `awake` keeps the cores from sleeping, as other functions do on AWS's hosts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

# AWS Lambda developer guide, "Configure Lambda function memory": one vCPU at 1,769 MB.
MB_PER_CORE = 1769
NIC_MBIT = 600
FILE_DESCRIPTORS = 1024
_PERIOD_US = 20_000
_CGROUPS = Path("/sys/fs/cgroup")


class Box:
    """Runs commands on the server's side, unlimited, and on the function's side, limited.

    Attributes:
        address: where a server that is started with `server_command` listens.
        network_mbit: the network's rate, Mbit/s; None if it is not limited.
        unlimited: what is not limited, as sentences.
    """

    def __init__(self, memory_mb: int, *, nic_mbit: int = NIC_MBIT) -> None:
        self._memory_mb, self._nic_mbit = memory_mb, nic_mbit
        self._name = f"fedagg{os.getpid()}"
        self._server, self._function = f"{self._name}s", f"{self._name}f"
        self._groups: list[Path] = []
        self._network = False
        self.address = "127.0.0.1"
        self.network_mbit: int | None = None
        self.unlimited: list[str] = []

    def __enter__(self) -> Box:
        try:
            self._make_network()
            self._make_cgroups()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def server_command(self, command: Sequence[str]) -> list[str]:
        """`command`, run on the server's side of the link."""
        return ["ip", "netns", "exec", self._server, *command] if self._network else list(command)

    def function_command(self, command: Sequence[str]) -> list[str]:
        """`command`, run inside the limits."""
        steps = [f"echo $$ > {group}/cgroup.procs" for group in self._groups]
        steps.append(f"ulimit -n {FILE_DESCRIPTORS}")
        inside = ["ip", "netns", "exec", self._function, *command] if self._network else list(command)
        return ["sh", "-ec", "; ".join([*steps, 'exec "$@"']), "sh", *inside]

    def _make_network(self) -> None:
        if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
            self.unlimited.append(f"network not limited to {self._nic_mbit} Mbit/s (needs root, ip and tc)")
            return
        self.address = "10.77.0.1"
        ends = {self._server: "10.77.0.1/24", self._function: "10.77.0.2/24"}
        for namespace in ends:
            _run("ip", "netns", "add", namespace)
        self._network = True
        _run(
            "ip", "link", "add", "eth0", "netns", self._server, "type", "veth", "peer", "eth0", "netns", self._function
        )
        for namespace, address in ends.items():
            inside = ("ip", "netns", "exec", namespace)
            _run(*inside, "ip", "addr", "add", address, "dev", "eth0")
            _run(*inside, "ip", "link", "set", "eth0", "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            rate = f"rate {self._nic_mbit}mbit burst 256kb latency 100ms".split()
            _run(*inside, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *rate)
        self.network_mbit = self._nic_mbit

    def _make_cgroups(self) -> None:
        quota = max(1000, _PERIOD_US * self._memory_mb // MB_PER_CORE)
        nbytes = self._memory_mb * 1024**2
        if (_CGROUPS / "cgroup.controllers").exists():
            controls = {".": {"cpu.max": f"{quota} {_PERIOD_US}", "memory.max": nbytes}}
        else:
            controls = {
                "cpu": {"cpu.cfs_period_us": _PERIOD_US, "cpu.cfs_quota_us": quota},
                "memory": {"memory.limit_in_bytes": nbytes},
            }
        for controller, settings in controls.items():
            group = _CGROUPS / controller / self._name
            try:
                if controller == ".":
                    (_CGROUPS / "cgroup.subtree_control").write_text("+cpu +memory")
                group.mkdir()
                self._groups.append(group)
                for name, value in settings.items():
                    (group / name).write_text(str(value))
            except OSError as error:
                what = {"cpu": "CPU share", "memory": "memory"}.get(controller, "CPU share and memory")
                self.unlimited.append(f"{what} not limited ({error.strerror}: {error.filename})")
                if group in self._groups:
                    self._groups.remove(group)
                    group.rmdir()

    def _remove(self) -> None:
        if self._network:
            for namespace in (self._server, self._function):
                subprocess.run(["ip", "netns", "del", namespace], check=False, stderr=subprocess.DEVNULL)
        for group in self._groups:
            group.rmdir()


# Runs only when nothing else needs its core, and ends with its parent.
_IDLER = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[2]):
    for _ in range(100_000):
        pass
"""


@contextmanager
def awake() -> Iterator[None]:
    """Keep every core busy with a process of the lowest priority, on Linux.

    A small function runs for 3 ms and is stopped for 17. On an idle machine its core sleeps in between and wakes up
    slowly, with empty caches, and the same work takes 25 to 50 % more CPU time. AWS Lambda's hosts run other functions
    in the meantime.
    """
    with ExitStack() as stack:
        for core in sorted(os.sched_getaffinity(0)) if hasattr(os, "SCHED_IDLE") else ():
            idler = stack.enter_context(subprocess.Popen([sys.executable, "-c", _IDLER, str(core), str(os.getpid())]))
            stack.callback(idler.kill)
        yield


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
