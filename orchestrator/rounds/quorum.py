"""Waiting for the updates of a round: until all expected updates are there, or until the deadline."""

from __future__ import annotations

import time
from collections.abc import Set

from orchestrator.errors import QuorumMissed
from orchestrator.rounds.context import RoundContext
from orchestrator.rounds.pin import Update, list_updates
from orchestrator.rounds.request import RoundRecord, RoundRequest

# Seconds between two looks for new updates: at first the smaller number, later up to the larger one. A LIST is billed.
_POLL_S = (1.0, 10.0)


class Window:
    """The time in which a round takes updates.

    It depends on the record alone, so that a coordinator that continues the round does not wait longer.
    """

    def __init__(self, record: RoundRecord) -> None:
        request = record.request
        self._closes = record.opened_at + request.deadline_s
        self._step = request.extend_s or request.deadline_s
        self._extensions = request.max_extensions if request.on_deadline == "extend" else 0

    def is_first(self, now: float) -> bool:
        """Whether the round still waits for all expected updates, and not only for its quorum."""
        return now < self._closes

    def extension(self, now: float) -> int:
        """How many times the deadline has been extended by `now`."""
        if now < self._closes or not self._extensions:
            return 0
        return min(self._extensions, int((now - self._closes) // self._step) + 1)

    def left(self, now: float) -> float:
        """Seconds until the deadline as extended so far; 0 or less after the last extension."""
        return self._closes + self.extension(now) * self._step - now


def wait_for_updates(
    context: RoundContext,
    *,
    without: Set[tuple[str, str]] = frozenset(),
    late: Set[str] = frozenset(),
) -> list[Update]:
    """Wait until the expected updates are there (the quorum, if none are expected), or until the deadline.

    Args:
        without: updates that do not count because they cannot be averaged, as client and ETag.
        late: clients with a late update of an earlier round to take over. They count for the quorum; but as long as
            the round waits for a number of updates, it waits for a newer update of these clients too.

    Returns:
        The updates of the clients that the round expects, in ascending client id.

    Raises:
        QuorumMissed: at the deadline with its extensions there are fewer updates than the quorum.
        LeaseLost, RoundAborted: this process no longer coordinates the round.
    """
    request, window = context.request, Window(context.record)
    named = frozenset(request.expect_clients or ())
    enough = request.expected or request.quorum
    pause, told = _POLL_S[0], (0, -1)
    with context.narration.bar("waiting for updates", enough) as progress:
        while True:
            context.lease.check()
            there = [u for u in list_updates(context.bucket, request.round_id) if not named or u.client in named]
            updates = [u for u in there if (u.client, u.etag) not in without]
            count = len(updates) + len(late - {u.client for u in there})
            now = time.time()
            if _is_over(request, window, now, len(updates), count):
                break
            state = (len(updates), window.extension(now))
            if state != told:
                _tell(context, window, now, len(updates))
                progress(state[0] - told[0])
                told, pause = state, _POLL_S[0]
            time.sleep(min(pause, window.left(now)))
            pause = min(pause * 1.5, _POLL_S[1])
    if count < request.quorum:
        raise QuorumMissed(
            f"Round {request.round_id} {_had(request, count)}. It stays open: let clients "
            "`orchestrator submit` and start it again, or change what it waits for with --replace-options."
        )
    return updates


def _is_over(request: RoundRequest, window: Window, now: float, updates: int, count: int) -> bool:
    """Whether to stop waiting: at the deadline, or because enough updates are there.

    Args:
        count: updates that count for the quorum: those of the round, and late ones of an earlier round.
    """
    if request.deadline_s == 0 or window.left(now) <= 0:
        return True
    if updates >= (request.expected or request.quorum):
        return True
    return count >= request.quorum and not (window.is_first(now) and request.expected)


def _tell(context: RoundContext, window: Window, now: float, updates: int) -> None:
    request, extension = context.request, window.extension(now)
    wanted = (request.expected or request.quorum) if window.is_first(now) else request.quorum
    extended = f" (extension {extension} of {request.max_extensions})" if extension else ""
    context.narration.say(
        f"{updates} of {wanted} updates are in; waiting up to {window.left(now):.0f} s more{extended}."
    )


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
