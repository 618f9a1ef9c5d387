"""The intake of a round: waiting for its updates, taking over late ones of an earlier round, checking all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lambdas.protocol.manifest import Exclusion
from orchestrator.errors import QuorumMissed
from orchestrator.rounds.context import RoundContext
from orchestrator.rounds.exclusion import describe
from orchestrator.rounds.late import kept_for, take_over
from orchestrator.rounds.pin import Pinned, Update, list_updates, pin_updates
from orchestrator.rounds.quorum import wait_for_updates

# An update that cannot be averaged: client and ETag. The same client may submit another one.
_Bad = dict[tuple[str, str], Exclusion]


def collect_updates(context: RoundContext) -> Pinned:
    """The updates that a round averages, and those that it leaves out.

    Where the round excludes bad updates, these do not count for the quorum, and waiting continues.

    Raises:
        QuorumMissed: at the deadline there are fewer usable updates than the quorum.
        RoundFailed: an update cannot be averaged, and the round does not exclude it.
        BadInput: the round `late_from` is not closed, or does not exist.
        LeaseLost, RoundAborted: this process no longer coordinates the round.
    """
    request = context.request
    late = kept_for(context.bucket, request)
    bad: _Bad = {}
    while True:
        updates = _wait_for_usable(context, late, bad)
        context.clock.mark("waiting")
        if late:
            updates = _with_late(context, updates, late)
        with context.narration.bar("checking updates", len(updates)) as progress:
            pinned = pin_updates(context.bucket, request, updates, progress)
        etags = {update.client: update.etag for update in updates}
        bad |= {(e.client, etags[e.client]): e for e in pinned.excluded}
        if len(pinned.participants) >= request.quorum:
            break
        context.narration.say(
            f"{len(bad)} updates cannot be averaged and do not count: {describe(tuple(bad.values()))}."
        )
    left_out = _left_out(context, pinned, bad)
    if left_out:
        context.narration.say(f"Left out: {describe(tuple(left_out.values()))}.")
    return replace(pinned, excluded=tuple(left_out[client] for client in sorted(left_out)))


def _wait_for_usable(context: RoundContext, late: list[Update], bad: _Bad) -> list[Update]:
    """Wait for updates besides those that are known to be bad."""
    try:
        return wait_for_updates(context, without=bad.keys(), late={update.client for update in late})
    except QuorumMissed as error:
        if not bad:
            raise
        raise QuorumMissed(f"{error} These cannot be averaged: {describe(tuple(bad.values()))}.") from error


def _with_late(context: RoundContext, updates: list[Update], late: list[Update]) -> list[Update]:
    """Take over late updates of clients that have not submitted to this round, and return all updates of the round."""
    bucket, round_id = context.bucket, context.round_id
    there = {update.client for update in list_updates(bucket, round_id)}
    copied = take_over(bucket, round_id, [update for update in late if update.client not in there])
    if copied:
        context.narration.say(f"Took over {len(copied)} late updates of round {context.request.late_from}.")
    mine = {update.client for update in updates} | {update.client for update in late}
    return [update for update in list_updates(bucket, round_id) if update.client in mine]


def _left_out(context: RoundContext, pinned: Pinned, bad: _Bad) -> Mapping[str, Exclusion]:
    """The clients that are left out, with the reasons."""
    left_out = {client: exclusion for (client, _), exclusion in bad.items()}
    expected = context.request.expect_clients
    if expected is not None:
        names = frozenset(expected)
        unexpected = [u.client for u in list_updates(context.bucket, context.round_id) if u.client not in names]
        reason = "is not among the clients whom the round expects"
        left_out |= {client: Exclusion(client, "NotExpected", reason) for client in unexpected}
    for participant in pinned.participants:  # A client may have replaced a bad update by a good one.
        left_out.pop(participant.client, None)
    return left_out
