"""The lease of a round: one coordinator holds it in S3, takes it by compare-and-swap, and renews it.

Clocks of different hosts are never compared. A lease has run out when the watcher has seen no renewal for the lease's
term by its own monotonic clock, or when the holder was a process of the watcher's machine and has ended. The lease
saves work. The result does not depend on it: two coordinators at a time still publish the same bytes (docs/design.md).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

from botocore.exceptions import BotoCoreError, ClientError

from lambdas.protocol.errors import FederationError
from lambdas.protocol.keys import coordinator_key, global_key
from lambdas.protocol.lease import CoordinatorRecord, Failure, Process
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import exists, read_object, swap_object
from orchestrator.errors import OrchestratorError, RoundAborted, RoundConflict, kind_of
from orchestrator.rounds.processes import is_gone, this_process

log = logging.getLogger(__name__)

# A lease that is not renewed for this long has run out, seconds. It is renewed three times in that time.
LEASE_S = 30.0
# Seconds between two looks of a waiting process at the lease and the report.
WATCH_EVERY_S = 1.0


class LeaseLost(OrchestratorError):
    """Another process coordinates the round now."""


@dataclass(frozen=True)
class Held:
    """A lease that another process holds."""

    record: CoordinatorRecord
    etag: str


def read_coordinator(bucket: Bucket, round_id: str) -> Held | None:
    """The round's coordinator record; None before any process has coordinated it."""
    found = read_object(bucket, coordinator_key(round_id))
    return Held(CoordinatorRecord.from_bytes(found[0]), found[1]) if found else None


def take(bucket: Bucket, round_id: str, *, instead_of: Held | None = None) -> Lease | Held:
    """Take the round's lease if it is free: never taken, given back, or held by an ended process of this machine.

    Args:
        instead_of: a lease that has run out. It is taken if it has not changed since.

    Returns:
        The lease, or the lease of the process that holds it.

    Raises:
        RoundAborted: the round was aborted.
    """
    while True:
        held = read_coordinator(bucket, round_id)
        process = this_process()
        token = uuid.uuid4().hex
        if held is None:
            record = CoordinatorRecord(round_id, token, process, LEASE_S)
        else:
            if held.record.state == "aborted":
                raise aborted(held.record)
            expired = instead_of is not None and held.etag == instead_of.etag
            if held.record.state not in ("stopped", "failed") and not expired and not is_gone(held.record.process):
                return held
            record = held.record.succeeded_by(process, token, LEASE_S)
        etag = swap_object(bucket, coordinator_key(round_id), record.to_bytes(), held.etag if held else None)
        if etag is not None:
            return Lease(bucket, record, etag)


def revoke(bucket: Bucket, round_id: str, model: str) -> CoordinatorRecord:
    """Revoke the lease, whichever process holds it, and mark the round as aborted. It cannot be published any more.

    Raises:
        RoundConflict: the round is being published, or its global model is stored.
    """
    while True:
        held = read_coordinator(bucket, round_id)
        if held is None:
            record = CoordinatorRecord(round_id, uuid.uuid4().hex, this_process(), LEASE_S, state="aborted")
        elif held.record.state == "aborted":
            return held.record
        elif held.record.state == "publishing":
            raise RoundConflict(
                f"Round {round_id} is being published by {held.record.process}; it cannot be aborted any more. "
                f"If that process has ended, `orchestrator resume --round {round_id}` finishes the round."
            )
        else:
            # A coordinator that stopped while publishing may have stored the model, and clients may have fetched it.
            if exists(bucket, global_key(model, round_id)):
                raise RoundConflict(
                    f"Round {round_id} has stored its global model already; it cannot be aborted any more. "
                    f"`orchestrator resume --round {round_id}` finishes it."
                )
            record = held.record.succeeded_by(this_process(), uuid.uuid4().hex, LEASE_S)
            record = replace(record, state="aborted")
        if swap_object(bucket, coordinator_key(round_id), record.to_bytes(), held.etag if held else None):
            return record


def aborted(record: CoordinatorRecord) -> RoundAborted:
    """The error of a round that was aborted."""
    return RoundAborted(
        f"Round {record.round_id} was aborted by {record.process}. Start a round with another id, and have the clients "
        "submit to it."
    )


class Watch:
    """Watches a lease that another process holds, to see when it runs out."""

    def __init__(self, bucket: Bucket, held: Held) -> None:
        self._bucket = bucket
        self.held = held
        self._changed = time.monotonic()

    def has_run_out(self) -> bool:
        """Read the lease again: whether it was given back, its process has ended, or it was not renewed in time."""
        found = read_coordinator(self._bucket, self.held.record.round_id)
        now = time.monotonic()
        if found is None:
            return True
        if found.etag != self.held.etag:
            self.held, self._changed = found, now
        record = self.held.record
        return record.state == "stopped" or is_gone(record.process) or now - self._changed > record.lease_s


class Lease:
    """The right to coordinate a round. `kept` renews it in the background.

    When the block of `kept` ends by an error, the lease is marked as stopped, with the error for processes that wait. A
    lease that is marked as `failed`, and the lease of a published round, stay as they are: the round has a report.
    """

    def __init__(self, bucket: Bucket, record: CoordinatorRecord, etag: str) -> None:
        self._bucket = bucket
        self.record = record
        self._etag = etag
        self._renewed = time.monotonic()
        self._lost: CoordinatorRecord | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def coordinators(self) -> tuple[Process, ...]:
        """The processes that have coordinated the round, oldest first, this process last."""
        return (*self.record.earlier, self.record.process)

    def check(self) -> None:
        """Return if this process still coordinates the round.

        Raises:
            LeaseLost: another process coordinates it.
            RoundAborted: the round was aborted.
        """
        if self._lost is None and time.monotonic() - self._renewed > self.record.lease_s / 2:
            self._renew()
        self._raise_if_lost()

    def mark(self, state: str) -> None:
        """Mark the round as `publishing`, after which it cannot be aborted, or as `failed`. Raises as `check` does."""
        with self._lock:
            self._swap(replace(self.record.renewed(), state=state))
        self._raise_if_lost()

    @contextlib.contextmanager
    def kept(self) -> Iterator[Lease]:
        """Renew the lease in the background while the block runs."""
        self._thread.start()
        try:
            yield self
        except (LeaseLost, RoundAborted):
            raise
        except FederationError as error:
            self._give_back(error)
            raise
        except BaseException:
            self._give_back(None)
            raise
        finally:
            self._stop.set()

    # -- internals --

    def _raise_if_lost(self) -> None:
        if self._lost is None:
            return
        if self._lost.state == "aborted":
            raise aborted(self._lost)
        raise LeaseLost(f"Round {self.record.round_id} is coordinated by {self._lost.process} now.")

    def _keep(self) -> None:
        while not self._stop.wait(self.record.lease_s / 3):
            try:
                self._renew()
            except (ClientError, BotoCoreError) as error:
                log.warning("Round %s: its lease could not be renewed: %s", self.record.round_id, error)
            if self._lost is not None:
                return

    def _renew(self) -> None:
        with self._lock:
            if not self._stop.is_set():
                self._swap(self.record.renewed())

    def _swap(self, record: CoordinatorRecord) -> None:
        if self._lost is not None:
            return
        began = time.monotonic()
        etag = swap_object(self._bucket, coordinator_key(record.round_id), record.to_bytes(), self._etag)
        if etag is not None:
            self.record, self._etag, self._renewed = record, etag, began
            return
        held = read_coordinator(self._bucket, record.round_id)
        self._lost = held.record if held else record

    def _give_back(self, error: FederationError | None) -> None:
        """Tell the processes that wait. Without a connection to AWS, they wait until the lease runs out."""
        failure: Failure | None = None
        if error is not None:
            status = getattr(error, "exit_status", 1)
            failure = {"kind": kind_of(error), "message": str(error), "exit_status": status}
        with contextlib.suppress(ClientError, BotoCoreError), self._lock:
            if self.record.state in ("running", "publishing"):
                self._swap(replace(self.record.renewed(), state="stopped", error=failure))
