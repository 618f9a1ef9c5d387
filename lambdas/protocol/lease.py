"""The coordinator record, `rounds/R/coordinator.json`: which process runs a round, and what state the round is in.

The record is replaced by compare-and-swap only (If-Match), so it also decides the round's outcome: a round is either
published or aborted, never both. The coordinator renews the record while it runs. Workers read it to find out whether
a job's result may be stored already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, TypedDict

from lambdas.protocol.documents import Document
from lambdas.protocol.fields import RoundId, Size, integer, one_of

# running: shards may be averaged. publishing: all shards are stored and the round can no longer be aborted. stopped: no
# process coordinates the round, and the next one may. failed, aborted: the round has ended.
STATES = ("running", "publishing", "stopped", "failed", "aborted")
# States in which no shard is left to average.
OVER = ("publishing", "failed", "aborted")

_EARLIER_KEPT = 50


@dataclass(frozen=True)
class Process:
    """A process that coordinates, or coordinated, a round.

    Attributes:
        machine: host, boot and process namespace; process ids are comparable only where this is equal.
        started: start time of the process, as its system counts it; together with the process id it is unique.
        since: when the process began to coordinate, seconds since the epoch by its own clock. Shown to people only.
    """

    host: str
    pid: Size
    machine: str
    started: str
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Failure(TypedDict):
    """The error with which a coordinator stopped: its class, its sentence and the command's exit status."""

    kind: str
    message: str
    exit_status: Annotated[int, integer(0, 255)]


@dataclass(frozen=True)
class CoordinatorRecord(Document):
    """The coordinator of a round.

    Attributes:
        token: identifies one run of a coordinator; a process that coordinates the round again has another token.
        lease_s: a record that is not replaced for this many seconds, by the clock of the process that watches it, may
            be taken over.
        state: one of STATES.
        beat: incremented by every renewal, so that every renewal changes the object.
        earlier: the coordinators before this one, oldest first.
        error: why it stopped; None where it was interrupted.
    """

    WHAT = "Coordinator record"
    SCHEMA = 2

    round_id: RoundId
    token: str
    process: Process
    lease_s: float
    state: Annotated[str, one_of(STATES)] = "running"
    beat: Size = 0
    earlier: tuple[Process, ...] = ()
    error: Failure | None = None

    def renewed(self) -> CoordinatorRecord:
        """The same record, one beat later."""
        return replace(self, beat=self.beat + 1)

    def succeeded_by(self, process: Process, token: str, lease_s: float) -> CoordinatorRecord:
        """The record of the next coordinator."""
        earlier = (*self.earlier, self.process)[-_EARLIER_KEPT:]
        return CoordinatorRecord(self.round_id, token, process, lease_s, earlier=earlier)
