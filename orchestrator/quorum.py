"""Before a round closes: what it is asked to be, and waiting for its updates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambdas.contract import check_name
from orchestrator.errors import BadInput, QuorumMissed
from orchestrator.narration import Narration
from orchestrator.pin import Update, list_updates

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# How often S3 is asked for new updates while a round is open: at first every second, later less often (a LIST costs).
_POLL_S = (1.0, 10.0)


@dataclass(frozen=True)
class RoundRequest:
    """What `start-round` is asked for.

    Attributes:
        shards: shard count, None to let the planner choose among the deployed lanes.
        min_clients: quorum; with fewer updates the round does not close.
        expect: close as soon as this many updates are there (None: at the quorum).
        deadline_s: how long to wait for updates, seconds; 0 closes the round with what is there now.
        timeout_s: how long to wait without any shard being finished, seconds (None: as long as the lane's queue
            tries).
    """

    model: str
    round_id: str
    shards: int | None = None
    min_clients: int = 1
    expect: int | None = None
    deadline_s: float = 0.0
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        check_name("model", self.model)
        check_name("round", self.round_id)
        if self.min_clients < 1:
            raise BadInput(f"A quorum of {self.min_clients} clients makes no average; expected 1 or more.")
        if self.expect is not None and self.expect < self.min_clients:
            raise BadInput(f"Expecting {self.expect} clients cannot reach the quorum of {self.min_clients}.")


def await_updates(
    s3: S3Client, bucket: str, request: RoundRequest, narration: Narration, still_mine: Callable[[], object]
) -> list[Update]:
    enough = request.expect or request.min_clients
    deadline = time.monotonic() + request.deadline_s
    pause, seen = _POLL_S[0], -1
    with narration.bar("waiting for updates", enough) as progress:
        while True:
            still_mine()
            updates = list_updates(s3, bucket, request.round_id)
            left = deadline - time.monotonic()
            if request.deadline_s == 0 or len(updates) >= enough or left <= 0:
                break
            if len(updates) != seen:
                narration.say(f"{len(updates)} of {enough} updates are in; waiting up to {left:.0f} s more.")
                progress(len(updates) - max(seen, 0))
                seen, pause = len(updates), _POLL_S[0]
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _POLL_S[1])
    if len(updates) < request.min_clients:
        had = (
            "has no updates"
            if not updates
            else f"has {len(updates)} of the {request.min_clients} updates of its quorum"
        )
        raise QuorumMissed(
            f"Round {request.round_id} {had}"
            + (f" after {request.deadline_s:.0f} s. " if request.deadline_s else " and no --deadline to wait for. ")
            + "It stays open: let clients `orchestrator submit`, or lower --min-clients, and start it again."
        )
    return updates
