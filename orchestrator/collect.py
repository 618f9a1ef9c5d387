"""From queued jobs to stored shards: results as they come, S3 as the truth."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lambdas.contract import RoundManifest, ShardResult, sha256_hex
from orchestrator.aws import Clients
from orchestrator.deployment import Deployment, Lane
from orchestrator.errors import RoundFailed
from orchestrator.messages import Results, dead_letters, forget_dead_letters
from orchestrator.stored import StoredShard, stored_shards

log = logging.getLogger(__name__)

# How often S3 is asked without any message.
_LOOK_EVERY_S = 15.0


class BadShard(RoundFailed):
    """A shard that no delivery can average: the round is over."""

    def __init__(self, message: str, result: ShardResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass
class Collection:
    """What is known of a round's shards: stored in S3, and reported by workers (the newest result of each)."""

    stored: dict[int, StoredShard] = field(default_factory=dict)
    results: dict[int, ShardResult] = field(default_factory=dict)
    retries: list[ShardResult] = field(default_factory=list)


def await_shards(
    clients: Clients,
    deployment: Deployment,
    lane: Lane,
    manifest: RoundManifest,
    *,
    collection: Collection,
    timeout_s: float,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Wait until every shard is stored, filling `collection`.

    Args:
        timeout_s: how long to wait without any shard being finished.
        progress: called with the number of shards that are newly finished.

    Raises:
        BadShard: an update cannot be averaged; names client, tensor and reason.
        RoundFailed: a job is in the dead-letter queue, or nothing happened for `timeout_s`.
    """
    digest = sha256_hex(manifest.to_bytes())
    results = Results(clients, deployment, manifest.round_id, digest)
    done = set(collection.stored)
    looked = moved = time.monotonic()
    forget_dead_letters(clients, lane, digest)
    # Until the queue has been empty once, a job's last try may be one that an earlier run of this round gave up on.
    earlier = True
    while len(done) < manifest.shards:
        received = results.receive()
        earlier = earlier and bool(received)
        for result in received:
            if result.shard >= manifest.shards:
                continue
            if result.status == "failed":
                raise BadShard(
                    f"Round {manifest.round_id}: shard {result.shard} of {manifest.shards}: {result.error}. "
                    "Nothing was published.",
                    result,
                )
            if result.status == "retrying":
                collection.retries.append(result)
                log.warning(
                    "Shard %d, try %d of %d: %s",
                    result.shard,
                    result.receive_count,
                    lane.max_receive_count,
                    result.error,
                )
                if result.receive_count >= lane.max_receive_count and result.shard not in done and not earlier:
                    raise _gave_up(manifest, lane, result.shard, collection)
                continue
            collection.results[result.shard] = result
            if result.shard not in done:
                done.add(result.shard)
                moved = time.monotonic()
                progress(1)
        now = time.monotonic()
        if now - looked < _LOOK_EVERY_S:
            continue
        looked = now
        stored = stored_shards(clients.s3, deployment.bucket, manifest)
        if stored is None:
            return  # another orchestrator has published or aborted it; publish() finds out
        if set(stored) - done:
            progress(len(set(stored) - done))
            done |= set(stored)
            moved = now
        for shard in dead_letters(clients, lane, digest).values():
            if shard not in done:
                raise _gave_up(manifest, lane, shard, collection)
        if now - moved > timeout_s:
            missing = sorted(set(range(manifest.shards)) - done)
            raise RoundFailed(
                f"Round {manifest.round_id}: {len(missing)} of {manifest.shards} shards (first: {missing[0]}) made no "
                f"progress for {timeout_s:.0f} s. Look at the log of {lane.function_name}; the same start-round "
                "continues the round."
            )


def _gave_up(manifest: RoundManifest, lane: Lane, shard: int, collection: Collection) -> RoundFailed:
    causes = [r.error for r in collection.retries if r.shard == shard and r.error]
    cause = (
        causes[-1] if causes else f"no result was sent (out of memory or time?); see the log of {lane.function_name}"
    )
    return RoundFailed(
        f"Round {manifest.round_id}: shard {shard} of {manifest.shards} failed {lane.max_receive_count} times and is "
        f"in the dead-letter queue {lane.dead_letter_queue_url}. Last cause: {cause}. Nothing was published; when the "
        "cause is gone, the same start-round continues the round."
    )
