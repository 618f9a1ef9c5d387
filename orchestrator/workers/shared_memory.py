"""LIFL on one machine: worker processes pass partial sums to each other in shared memory instead of through S3.

A pool is one parent and its worker processes. The names of its blocks begin with the pool's name, so that two pools on
one machine do not share blocks. A worker that cannot reach a sum reports it, and the round has that sum computed again
and stored in S3. Blocks are removed when their round has ended and when the pool ends. If the whole pool is killed,
multiprocessing's resource tracker, which is a separate process, removes them.
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
# Linux keeps POSIX shared memory here; these are not temporary files.
_SHM = Path("/dev/shm")  # noqa: S108  # nosec B108


class Blocks:
    """The blocks of one pool, as one of its processes sees them; implements lambdas.storage.partials.SharedBlocks.

    Args:
        announce: a queue that gets (round id, block name) before a block is made, so that the parent can remove the
            block even if this process is killed.
    """

    def __init__(self, pool: str, announce: Any) -> None:
        self._pool = pool
        self._announce = announce
        self._mapped: dict[str, SharedMemory] = {}
        self._dropped: list[SharedMemory] = []  # closed when no array refers to them any more

    def full_name(self, name: str) -> str:
        """The block's name on this machine."""
        return f"{self._pool}-{name}"

    def find(self, name: str) -> memoryview | None:
        """A block's bytes; None if it does not exist."""
        full = self.full_name(name)
        try:
            block = self._mapped.get(full) or SharedMemory(full)
        except (FileNotFoundError, ValueError):
            return None
        self._mapped[full] = block
        return block.buf

    def create(self, name: str, nbytes: int, round_id: str) -> memoryview | None:
        """A new block of zeros; None if this machine has no memory for it, and the sum then goes through S3.

        Raises:
            StorageUnavailable: the block exists, because another process is working on it.
        """
        full = self.full_name(name)
        self._announce.put((round_id, full))
        try:
            block = SharedMemory(full, create=True, size=nbytes)
        except FileExistsError as error:
            raise StorageUnavailable(f"Another process of this machine is working on {full}.") from error
        except OSError:
            return None
        if (_SHM / full).exists():
            # Linux allocates pages on first use and kills the process when none are left: allocate them now.
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
        """Remove a block."""
        full = self.full_name(name)
        if full in self._mapped:
            self._dropped.append(self._mapped.pop(full))
        remove(full)

    def unmap(self) -> None:
        """Close the mappings that no array uses; the blocks stay."""
        for full, block in list(self._mapped.items()):
            if _close(block):
                del self._mapped[full]
        self._dropped = [block for block in self._dropped if not _close(block)]


def _close(block: SharedMemory) -> bool:
    try:
        block.close()
    except BufferError:  # an array still refers to it
        return False
    return True


def remove(name: str) -> None:
    """Remove a block, if it exists."""
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
    """Run several worker processes that share memory on the lanes, until they are idle or interrupted."""
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
