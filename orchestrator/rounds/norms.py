"""How large the updates were: each client's L2 norm, from the sums of squares that workers leave per shard.

The norm is that of the update as it was submitted: sqrt of the sum of the squares of all its floating-point values, in
float64; of the weights where clients submit weights, of the difference where they submit differences. Counters and
booleans do not count. How the model is cut, and the machine, may change its last digits.
"""

from __future__ import annotations

import base64
import concurrent.futures
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lambdas.protocol.keys import norms_key
from lambdas.protocol.manifest import Exclusion, RoundManifest
from lambdas.protocol.messages import Result, ShardResult
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import read_object

if TYPE_CHECKING:
    pass

# Above so many clients their sums of squares go into objects: a result message has its limits (256 KiB on emulators),
# and SQS bills every 64 KiB of it.
MOST_IN_MESSAGES = 4096

Norms = Mapping[str, float]


def read_norms(bucket: Bucket, manifest: RoundManifest, results: Mapping[int, Result]) -> dict[str, float] | None:
    """L2 norm by client; None where a shard's sums of squares are not known, because its message was lost."""
    shards = range(manifest.shards)
    if manifest.norms == "objects":

        def read(shard: int) -> bytes | None:
            found = read_object(bucket, norms_key(manifest.round_id, shard, manifest.shards, manifest.revision))
            return found[0] if found else None

        with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            parts = list(pool.map(read, shards))
    else:
        parts = [_decoded(results.get(shard)) for shard in shards]
    total: npt.NDArray[np.float64] = np.zeros(len(manifest.participants), dtype=np.float64)
    for part in parts:
        if part is None or len(part) != total.nbytes:
            return None
        squares = np.frombuffer(part, dtype="<f8")
        if not (squares >= 0).all():  # no worker sends such a thing
            return None
        total += squares
    return {p.client: math.sqrt(squares) for p, squares in zip(manifest.participants, total.tolist(), strict=True)}


def _decoded(result: Result | None) -> bytes | None:
    if not isinstance(result, ShardResult) or result.norms is None:
        return None
    try:
        return base64.b64decode(result.norms, validate=True)
    except ValueError:  # no base64, or no ASCII at all
        return None


def too_large(norms: Norms, limit: float) -> list[Exclusion]:
    """The clients whose norm is above `limit`, in the order of `norms`."""
    return [
        Exclusion(client, "NormTooLarge", f"the L2 norm of its update is {norm:.6g}, above the largest of {limit:.6g}")
        for client, norm in norms.items()
        if not norm <= limit
    ]
