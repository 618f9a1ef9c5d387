"""Before a round closes: waiting for its updates, until all that are expected are in, or the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from typing import TYPE_CHECKING

from lambdas.storage.bucket import Bucket
from orchestrator.errors import QuorumMissed
from orchestrator.progress import Narration
from orchestrator.rounds.pin import Update, list_updates
from orchestrator.rounds.request import RoundRecord, RoundRequest

if TYPE_CHECKING:
    pass

# How often S3 is asked for new updates while a round is open: at first every second, later less often (a LIST costs).
_POLL_S = (1.0, 10.0)


class Window:
    """The time in which a round takes updates. It follows from the record alone, so that whoever goes on with the
    round after a crash waits for no longer.
    """

    def __init__(self, record: RoundRecord) -> None:
        request = record.request
        self._closes = record.opened_at + request.deadline_s
        self._step = request.extend_s or request.deadline_s
        self._extensions = request.max_extensions if request.on_deadline == "extend" else 0

    def is_first(self, now: float) -> bool:
        """Whether the round still waits for everybody whom it expects, and not only for its quorum."""
        return now < self._closes

    def extension(self, now: float) -> int:
        """How often the deadline has been extended by `now`."""
        if now < self._closes or not self._extensions:
            return 0
        return min(self._extensions, int((now - self._closes) // self._step) + 1)

    def left(self, now: float) -> float:
        """Seconds until the deadline as extended so far; 0 or less when it has passed for good."""
        return self._closes + self.extension(now) * self._step - now


def await_updates(
    bucket: Bucket,
    record: RoundRecord,
    narration: Narration,
    still_mine: Callable[[], object],
    *,
    without: Set[tuple[str, str]] = frozenset(),
    late: Set[str] = frozenset(),
) -> list[Update]:
    """Wait until the expected updates (or, without an expectation, the quorum) are in, or the deadline has passed.

    Args:
        still_mine: called now and then; raises where another process coordinates the round.
        without: updates that do not count, as client and ETag: they cannot be averaged.
        late: clients who have a late update of an earlier round to take over. They count for the quorum, but nobody
            stops waiting for a newer one because of them.

    Returns:
        The updates of clients whom the round expects, in ascending client id.

    Raises:
        QuorumMissed: fewer of them than the quorum when the deadline, with its extensions, had passed.
    """
    request = record.request
    window = Window(record)
    enough = request.expected or request.quorum
    named = frozenset(request.expect_clients or ())
    pause, told = _POLL_S[0], (-1, 0)
    with narration.bar("waiting for updates", enough) as progress:
        while True:
            still_mine()
            there = [u for u in list_updates(bucket, request.round_id) if not named or u.client in named]
            updates = [u for u in there if (u.client, u.etag) not in without]
            count = len(updates) + len(late - {u.client for u in there})
            now = time.time()
            left = window.left(now)
            first = window.is_first(now)
            if request.deadline_s == 0 or left <= 0:
                break
            if len(updates) >= enough or (count >= request.quorum and not (first and request.expected)):
                break
            wanted = enough if first else request.quorum
            extension = window.extension(now)
            if (len(updates), extension) != told:
                extended = f" (extension {extension} of {request.max_extensions})" if extension else ""
                narration.say(f"{len(updates)} of {wanted} updates are in; waiting up to {left:.0f} s more{extended}.")
                progress(len(updates) - max(told[0], 0))
                told, pause = (len(updates), extension), _POLL_S[0]
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _POLL_S[1])
    if count < request.quorum:
        raise QuorumMissed(
            f"Round {request.round_id} {_had(request, count)}. It stays open: let clients "
            "`orchestrator submit` and start it again, or change what it waits for with --replace-options."
        )
    return updates


def _had(request: RoundRequest, count: int) -> str:
    had = f"has {count} of the {request.quorum} updates of its quorum" if count else "has no updates"
    if request.deadline_s == 0:
        return f"{had} and no --deadline to wait for"
    extended = (
        f" and {request.max_extensions} extensions of {request.extend_s or request.deadline_s:.0f} s"
        if request.on_deadline == "extend"
        else ""
    )
    return f"{had} after its deadline of {request.deadline_s:.0f} s{extended}"
