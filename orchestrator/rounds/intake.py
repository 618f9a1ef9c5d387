"""Closing a round: its updates awaited, late ones of an earlier round taken over, every one checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lambdas.protocol.manifest import Exclusion
from lambdas.storage.bucket import Bucket
from orchestrator.errors import QuorumMissed
from orchestrator.progress import Narration
from orchestrator.rounds.exclusion import describe
from orchestrator.rounds.late import kept_for_later, take_over
from orchestrator.rounds.pin import Pinned, Update, list_updates, pin_updates
from orchestrator.rounds.quorum import await_updates
from orchestrator.rounds.request import RoundRecord

if TYPE_CHECKING:
    pass


def gather(
    bucket: Bucket,
    record: RoundRecord,
    narration: Narration,
    still_mine: Callable[[], object],
    waited: Callable[[], object] = lambda: None,
) -> Pinned:
    """The updates that a round will average, and those that it leaves out.

    Where the round excludes bad updates, they count for nothing: it goes on waiting for others.

    Args:
        still_mine: called now and then; raises where another process coordinates the round.
        waited: called when waiting has ended.

    Raises:
        QuorumMissed: fewer usable updates than the quorum at the deadline.
        RoundFailed: an update cannot be averaged, and the round does not exclude it.
        BadInput: there is no round to take late updates over from.
    """
    request = record.request
    exclude = request.on_invalid == "exclude"
    late = kept_for_later(bucket, request.late_from) if request.late_from else []
    late = [update for update in late if request.expect_clients is None or update.client in request.expect_clients]
    bad: dict[tuple[str, str], Exclusion] = {}
    while True:
        try:
            updates = await_updates(
                bucket, record, narration, still_mine, without=bad.keys(), late={u.client for u in late}
            )
        except QuorumMissed as error:
            if bad:
                raise QuorumMissed(f"{error} These cannot be averaged: {describe(tuple(bad.values()))}.") from error
            raise
        waited()
        if late:
            updates = _with_late(bucket, record, updates, late, narration)
        with narration.bar("checking updates", len(updates)) as progress:
            pinned = pin_updates(
                bucket, request.round_id, request.model, updates, progress,
                exclude=exclude, max_examples=request.max_examples,
            )  # fmt: skip
        etags = {update.client: update.etag for update in updates}
        bad |= {(e.client, etags[e.client]): e for e in pinned.excluded}
        if len(pinned.participants) >= request.quorum:
            break
        narration.say(f"{len(bad)} updates cannot be averaged and do not count: {describe(tuple(bad.values()))}.")
    left_out = {client: exclusion for (client, _), exclusion in bad.items()}
    left_out |= {e.client: e for e in _not_expected(bucket, record)}
    for participant in pinned.participants:  # it was deleted and submitted again
        left_out.pop(participant.client, None)
    if left_out:
        narration.say(f"Left out: {describe(tuple(left_out.values()))}.")
    return replace(pinned, excluded=tuple(left_out[client] for client in sorted(left_out)))


def _with_late(
    bucket: Bucket, record: RoundRecord, updates: list[Update], late: list[Update], narration: Narration
) -> list[Update]:
    """Take over late updates of clients who have sent nothing newer; all updates of the round then."""
    round_id = record.round_id
    there = {update.client for update in list_updates(bucket, round_id)}
    copied = take_over(bucket, round_id, [update for update in late if update.client not in there])
    if copied:
        narration.say(f"Took over {len(copied)} late updates of round {record.request.late_from}.")
    mine = {update.client for update in updates} | {update.client for update in late}
    return [update for update in list_updates(bucket, round_id) if update.client in mine]


def _not_expected(bucket: Bucket, record: RoundRecord) -> list[Exclusion]:
    if record.request.expect_clients is None:
        return []
    expected = frozenset(record.request.expect_clients)
    return [
        Exclusion(update.client, "NotExpected", "is not among the clients whom the round expects")
        for update in list_updates(bucket, record.round_id)
        if update.client not in expected
    ]
