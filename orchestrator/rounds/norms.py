"""The L2 norm of each client's update, from the sums of squares that workers report for each shard.

The norm is the square root of the sum of the squares of all floating-point values of the update, in float64: of weights
where clients submit weights, of differences where they submit differences. Integers and booleans are left out. The
shard count and the machine may change the last digits.
"""

from __future__ import annotations

import base64
import concurrent.futures
import math
from collections.abc import Mapping

from lambdas.protocol.keys import norms_key
from lambdas.protocol.manifest import Exclusion, RoundManifest
from lambdas.protocol.messages import Result, ShardResult
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import read_object

# With more clients than this, sums of squares are stored in objects instead of result messages. A message has at most
# 256 KiB (on emulators), and SQS bills every 64 KiB of it.
MOST_IN_MESSAGES = 4096

Norms = Mapping[str, float]


def read_norms(bucket: Bucket, manifest: RoundManifest, results: Mapping[int, Result]) -> dict[str, float] | None:
    """L2 norm by client; None where the sums of squares of a shard are missing, for example because a message was lost.

    The sums are in `results`, by shard, or in objects (the manifest's `norms`).
    """
    import numpy as np  # here, because loading it takes 0.1 s and most commands do not read norms

    shards = range(manifest.shards)
    if manifest.norms == "objects":

        def read(shard: int) -> bytes | None:
            found = read_object(bucket, norms_key(manifest.round_id, shard, manifest.shards, manifest.revision))
            return found[0] if found else None

        with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            parts = list(pool.map(read, shards))
    else:
        parts = [_decoded(results.get(shard)) for shard in shards]
    total = np.zeros(len(manifest.participants), dtype=np.float64)
    for part in parts:
        if part is None or len(part) != total.nbytes:
            return None
        squares = np.frombuffer(part, dtype="<f8")
        if not (squares >= 0).all():  # A forged message: squares are not negative.
            return None
        total += squares
    return {p.client: math.sqrt(squares) for p, squares in zip(manifest.participants, total.tolist(), strict=True)}


def _decoded(result: Result | None) -> bytes | None:
    if not isinstance(result, ShardResult) or result.norms is None:
        return None
    try:
        return base64.b64decode(result.norms, validate=True)
    except ValueError:  # not base64, or not ASCII
        return None


def too_large(norms: Norms, limit: float) -> list[Exclusion]:
    """The clients with a norm above `limit`, in the order of `norms`."""
    return [
        Exclusion(client, "NormTooLarge", f"the L2 norm of its update is {norm:.6g}, above the largest of {limit:.6g}")
        for client, norm in norms.items()
        if not norm <= limit
    ]
