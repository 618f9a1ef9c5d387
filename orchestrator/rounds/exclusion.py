"""A round without the clients whose updates turned out to be bad: planned anew, from a new revision of its manifest.

All or nothing: every shard is averaged again without them. Workers drop what is left of the old revision's jobs, whose
hash is another one. The manifest is replaced by compare-and-swap, so that whoever coordinates the round next finds either
the old revision, and the same bad updates again, or the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lambdas.protocol.keys import manifest_key
from lambdas.protocol.manifest import Exclusion, RoundManifest
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import read_object, swap_object
from orchestrator.errors import QuorumMissed, RoundFailed
from orchestrator.rounds.abort import abort_upload
from orchestrator.rounds.manifest import create_output
from orchestrator.rounds.request import RoundRequest

if TYPE_CHECKING:
    pass

# Each revision averages the whole round again. Bad updates are mostly found together; so many rounds of finding more
# mean that something else is wrong.
MAX_REVISIONS = 20
_NAMED = 10


def exclude(bucket: Bucket, request: RoundRequest, manifest: RoundManifest, bad: Sequence[Exclusion]) -> RoundManifest:
    """Replace a round's manifest by one without some clients, and remove what was averaged with them.

    Returns:
        The round's new manifest; where another coordinator was faster, the one that it has written.

    Raises:
        QuorumMissed: too few clients are left.
        RoundFailed: it was planned anew too often.
    """
    names = {exclusion.client for exclusion in bad}
    left = tuple(p for p in manifest.participants if p.client not in names)
    excluded = tuple(sorted((*manifest.excluded, *bad), key=lambda exclusion: exclusion.client))
    if len(left) < request.quorum:
        raise QuorumMissed(
            f"Round {manifest.round_id}: {len(left)} of the {request.quorum} updates of its quorum are left after "
            f"excluding {describe(excluded)}. Nothing was published."
        )
    if manifest.revision >= MAX_REVISIONS:
        raise RoundFailed(
            f"Round {manifest.round_id}: bad updates were found in each of {manifest.revision + 1} attempts: "
            f"{describe(excluded)}. Nothing was published."
        )
    output = create_output(bucket, manifest.output.kind, manifest.output.key)
    planned = replace(
        manifest, participants=left, excluded=excluded, revision=manifest.revision + 1, output=output
    )  # fmt: skip
    key = manifest_key(manifest.round_id)
    found = read_object(bucket, key)
    if found is None:
        raise RoundFailed(f"Round {manifest.round_id}: its manifest was deleted by someone else.")
    if found[0] != manifest.to_bytes() or swap_object(bucket, key, planned.to_bytes(), found[1]) is None:
        # Another coordinator was faster; what its revision has stored stays.
        if output.upload_id is not None:
            abort_upload(bucket, output.key, output.upload_id)
        found = read_object(bucket, key) or found
        return RoundManifest.from_bytes(found[0])
    _retire(bucket, manifest)
    return planned


def _retire(bucket: Bucket, manifest: RoundManifest) -> None:
    """Abort an old revision's upload, and no other: a coordinator that was held up here must do no harm to a newer plan.

    What else the revision stored is cleaned up when the round ends.
    """
    if manifest.output.upload_id is not None:
        abort_upload(bucket, manifest.output.key, manifest.output.upload_id)


def describe(excluded: Sequence[Exclusion]) -> str:
    """The clients that a round does without, and why, for a sentence."""
    more = f"; and {len(excluded) - _NAMED} more clients" if len(excluded) > _NAMED else ""
    return "; ".join(f"client {e.client} ({e.reason})" for e in excluded[:_NAMED]) + more
