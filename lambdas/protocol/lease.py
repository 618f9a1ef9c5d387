"""`rounds/R/coordinator.json`: who coordinates a round, and how far it may be driven. Standard library only.

It is replaced by compare-and-swap only (If-Match), so it is also where a round is decided: it is either being
published or aborted, never both. Orchestrators renew it while they drive; workers read it to know whether a job may be
one that is done already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lambdas.protocol.documents import Fields, canonical_json
from lambdas.protocol.keys import round_prefix

# driving: its shards may be averaged; publishing: all of them are stored, it can no longer be aborted; stopped: nobody
# drives, the next orchestrator may; failed and aborted: the round has ended.
STATES = ("running", "publishing", "stopped", "failed", "aborted")
# States in which there is nothing left to average.
OVER = ("publishing", "failed", "aborted")

_EARLIER_KEPT = 50


def coordinator_key(round_id: str) -> str:
    """Key of the round's coordinator record."""
    return round_prefix(round_id) + "coordinator.json"


SCHEMA = 2


@dataclass(frozen=True)
class Process:
    """A process that coordinates, or coordinated, a round.

    Attributes:
        machine: host, boot and process namespace; equal only where process ids mean the same.
        started: when the process was started, as its system counts it; with the process id it names a process.
        since: when it began to drive, seconds since the epoch, by its own clock. For people; nothing is decided by it.
    """

    host: str
    pid: int
    machine: str
    started: str
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def parse(cls, f: Fields) -> Process:
        return cls(
            f.text("host"), f.integer("pid", 0, 2**63 - 1), f.text("machine"), f.text("started"), f.number("since")
        )


@dataclass(frozen=True)
class CoordinatorRecord:
    """The coordinator of a round.

    Attributes:
        token: names this drive; a process that drives again has another one.
        beat: grows with every renewal, so that every renewal changes the object.
        lease_s: a record that nobody has replaced for so long, watched by the watcher's own clock, is free to be taken.
        state: one of STATES.
        earlier: who coordinated before, oldest first.
        error: why it stopped: `kind`, `message`, `exit_status`; None where it was interrupted.
    """

    round_id: str
    token: str
    process: Process
    lease_s: float
    state: str = "running"
    beat: int = 0
    earlier: tuple[Process, ...] = ()
    error: Mapping[str, Any] | None = None

    def renewed(self) -> CoordinatorRecord:
        """The same, one beat later."""
        return replace(self, beat=self.beat + 1)

    def succeeded_by(self, process: Process, token: str, lease_s: float) -> CoordinatorRecord:
        """The record of the next coordinator."""
        earlier = (*self.earlier, self.process)[-_EARLIER_KEPT:]
        return CoordinatorRecord(self.round_id, token, process, lease_s, earlier=earlier)

    def to_bytes(self) -> bytes:
        return canonical_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> CoordinatorRecord:
        f = Fields.parse("Coordinator record", data, SCHEMA)
        error = f.optional_object("error")
        return cls(
            round_id=f.name("round_id", "round"),
            token=f.text("token"),
            process=Process.parse(f.object("process")),
            lease_s=f.number("lease_s"),
            state=f.choice("state", STATES),
            beat=f.integer("beat", 0, 2**63 - 1),
            earlier=tuple(Process.parse(p) for p in f.objects("earlier")),
            error=None
            if error is None
            else {
                "kind": error.text("kind"),
                "message": error.text("message"),
                "exit_status": error.integer("exit_status", 0, 255),
            },
        )
