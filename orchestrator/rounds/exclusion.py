"""Replanning a round without the clients whose updates cannot be averaged, by a new revision of its manifest.

The round is replanned without these clients. Workers drop the remaining jobs of the old revision, because these
have another manifest hash. The manifest is replaced by compare-and-swap: the next coordinator of the round finds
either the old revision, and then the same bad updates, or the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lambdas.protocol.keys import manifest_key
from lambdas.protocol.manifest import Exclusion, RoundManifest
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import read_object, swap_object
from orchestrator.errors import QuorumMissed, RoundFailed
from orchestrator.rounds.abort import abort_upload
from orchestrator.rounds.manifest import create_output
from orchestrator.rounds.request import RoundRequest

# Each revision averages the whole round again. Most bad updates are found by the first attempt; if this many attempts
# find more of them, something else is wrong.
MAX_REVISIONS = 20
# The number of clients that a sentence names.
_NAMED = 10


def exclude(bucket: Bucket, request: RoundRequest, manifest: RoundManifest, bad: Sequence[Exclusion]) -> RoundManifest:
    """Replace a round's manifest by one without some clients, and abort the multipart upload of the old one.

    Returns:
        The round's new manifest. If another coordinator has replaced it already, that coordinator's manifest.

    Raises:
        QuorumMissed: fewer clients than the quorum are left.
        RoundFailed: the round was replanned too often, or its manifest was deleted.
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
    revision = manifest.revision + 1
    replanned = replace(manifest, participants=left, excluded=excluded, revision=revision, output=output)
    key = manifest_key(manifest.round_id)
    found = read_object(bucket, key)
    if found is None:
        raise RoundFailed(f"Round {manifest.round_id}: its manifest was deleted. Start another round.")
    if found[0] != manifest.to_bytes() or swap_object(bucket, key, replanned.to_bytes(), found[1]) is None:
        # Another coordinator was faster. The outputs of its revision stay.
        abort_upload(bucket, output.key, output.upload_id)
        found = read_object(bucket, key) or found
        return RoundManifest.from_bytes(found[0])
    # Only the upload of the old revision: another coordinator may have begun a newer one. The other objects of the old
    # revision are removed when the round ends.
    abort_upload(bucket, manifest.output.key, manifest.output.upload_id)
    return replanned


def describe(excluded: Sequence[Exclusion]) -> str:
    """The excluded clients with their reasons, for a sentence. Names the first ten."""
    more = f"; and {len(excluded) - _NAMED} more clients" if len(excluded) > _NAMED else ""
    return "; ".join(f"client {e.client} ({e.reason})" for e in excluded[:_NAMED]) + more
