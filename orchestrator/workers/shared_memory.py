"""LIFL on one machine: worker processes that hand each other partial sums in shared memory instead of through S3.

A pool is one parent and its worker processes. Blocks carry the pool's name, so that two pools on a machine never take
each other's; a sum that a job's worker cannot reach is reported, and the round has it made again in S3. Blocks go when
their round has ended and when the pool ends; should the whole pool be killed, multiprocessing's resource tracker, a
process of its own, removes them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import secrets
import time
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from lambdas.protocol.errors import StorageUnavailable
from lambdas.protocol.keys import report_key
from orchestrator.aws.clients import AwsClients, connect
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.aws.s3 import exists
from orchestrator.workers import poll

_TIDY_EVERY_S = 2.0
# No issue: not a temporary file of ours, but where Linux keeps POSIX shared memory.
_SHM = Path("/dev/shm")  # noqa: S108  # nosec B108


class Blocks:
    """The blocks of one pool, as one of its processes sees them; a lambdas.partials.SharedBlocks.

    Args:
        announce: takes (round id, block name) before a block is made: whoever dies, the parent knows what to remove.
    """

    def __init__(self, pool: str, announce: Any) -> None:
        self._pool = pool
        self._announce = announce
        self._mapped: dict[str, SharedMemory] = {}
        self._dropped: list[SharedMemory] = []  # to be closed when no array is left over them

    def full_name(self, name: str) -> str:
        """The block's name on this machine."""
        return f"{self._pool}-{name}"

    def find(self, name: str) -> memoryview | None:
        """A block's bytes, None where there is none."""
        full = self.full_name(name)
        try:
            block = self._mapped.get(full) or SharedMemory(full)
        except (FileNotFoundError, ValueError):
            return None
        self._mapped[full] = block
        return block.buf

    def create(self, name: str, nbytes: int, round_id: str) -> memoryview | None:
        """A new block of zeros, None where this machine has no room for it (the sum then goes through S3).

        Raises:
            StorageUnavailable: it exists: another process is at work on it.
        """
        full = self.full_name(name)
        self._announce.put((round_id, full))
        try:
            block = SharedMemory(full, create=True, size=nbytes)
        except FileExistsError as error:
            raise StorageUnavailable(f"Another process of this machine is at work on {full}.") from error
        except OSError:
            return None
        if (_SHM / full).exists():
            # Linux hands out pages on first use and kills the process when there are none left: take them now.
            try:
                with (_SHM / full).open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, nbytes)
            except OSError:
                _close(block)
                block.unlink()
                return None
        self._mapped[full] = block
        return block.buf

    def drop(self, name: str) -> None:
        """Give up a block."""
        full = self.full_name(name)
        if full in self._mapped:
            self._dropped.append(self._mapped.pop(full))
        remove(full)

    def unmap(self) -> None:
        """Forget mappings that no one uses; the blocks stay."""
        for full, block in list(self._mapped.items()):
            if _close(block):
                del self._mapped[full]
        self._dropped = [block for block in self._dropped if not _close(block)]


def _close(block: SharedMemory) -> bool:
    try:
        block.close()
    except BufferError:  # an array over it is still alive
        return False
    return True


def remove(name: str) -> None:
    """Remove a block, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        block = SharedMemory(name)
        _close(block)
        block.unlink()


def _child(deployment: Deployment, lanes: Sequence[Lane], pool: str, announce: Any, idle_exit_s: float | None) -> None:
    aws = connect(deployment.region, deployment.endpoint_url)
    blocks = Blocks(pool, announce)
    parent = multiprocessing.parent_process()

    def after_job(done: bool) -> None:
        blocks.unmap()
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)

    with contextlib.suppress(KeyboardInterrupt):
        poll.work(aws, deployment, lanes, idle_exit_s=idle_exit_s, on_job=after_job, shared=blocks)


def work_together(
    aws: AwsClients,
    deployment: Deployment,
    lanes: Sequence[Lane],
    *,
    processes: int,
    idle_exit_s: float | None = None,
) -> None:
    """Work on the lanes with several processes that share memory, until they are idle or interrupted."""
    context = multiprocessing.get_context("spawn")
    pool = f"fedagg-{secrets.token_hex(4)}"
    announced: Any = context.Queue()
    children = [
        context.Process(target=_child, args=(deployment, list(lanes), pool, announced, idle_exit_s), daemon=True)
        for _ in range(processes)
    ]
    blocks: dict[str, set[str]] = {}
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            time.sleep(_TIDY_EVERY_S)
            _drain(announced, blocks)
            for round_id in [r for r in blocks if exists(aws.bucket(deployment.bucket), report_key(r))]:
                for name in blocks.pop(round_id):
                    remove(name)
    finally:
        for child in children:
            child.terminate()
            child.join()
        _drain(announced, blocks)
        for names in blocks.values():
            for name in names:
                remove(name)


def _drain(announced: Any, blocks: dict[str, set[str]]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            round_id, name = announced.get_nowait()
            blocks.setdefault(round_id, set()).add(name)
