"""The handler that GradsSharding (arXiv:2604.22072) measured: profile "whole-object".

One whole object after the other through boto3 and np.load, a float32 running sum, the result put at the end; functions
invoked directly and warm, as many at once as the account lets run. It is what the paper's numbers can be compared with,
and what the streaming worker is compared with.
"""

from __future__ import annotations

import math

from orchestrator.planning import prices as p
from orchestrator.planning.streaming import (
    Prediction,
    Question,
    count_functions,
    cpu_share,
    levels,
    spread_s,
    too_slow,
    transfer_s,
)

_MIB = 1024**2


def whole_object(question: Question) -> Prediction:
    """Predict a round of the paper's handlers.

    Function memory by the paper's rule: 3 times the shard (or gradient) and 450 MB, capped.
    """
    q = question
    sharded = q.topology == "grads-sharding"
    piece = -(-q.model_bytes // q.shards) if sharded else q.model_bytes
    copies_mb = p.PAPER_COPIES * piece / _MIB
    by_rule = max(p.LAMBDA_MIN_MEMORY_MB, math.ceil(copies_mb + p.PAPER_BASE_MB))
    memory_mb = min(by_rule, q.memory_cap_mb) if q.memory_mb is None else q.memory_mb
    peak_mb = math.ceil(copies_mb) + p.RUNTIME_MB
    seconds = billed = longest = 0.0
    gets = functions = 0
    for level in levels(q.topology, q.clients, q.shards):
        work = {inputs: _handler_s(piece, inputs, memory_mb) for _, inputs in level}
        slowest, count = max(work.values()), count_functions(level)
        # No ramp-up: the coordinator invokes all of a level at once, and the account lets so many run.
        turns = -(-count // q.concurrency)
        seconds += p.INVOKE_S + turns * slowest + spread_s(min(count, q.concurrency), slowest)
        billed += sum(n * work[inputs] for n, inputs in level)
        gets += sum(n * inputs for n, inputs in level)
        functions += count
        longest = max(longest, slowest)
    obstacles = []
    if memory_mb > q.memory_cap_mb:
        obstacles.append(f"{memory_mb:,} MB of memory are more than the cap of {q.memory_cap_mb:,} MB.")
    if peak_mb > memory_mb:
        step = "use more shards" if sharded else "use grads-sharding"
        obstacles.append(
            f"The handler holds 3 copies of {piece:,} bytes, about {peak_mb:,} MB; the function has {memory_mb:,} MB "
            f"(cap {q.memory_cap_mb:,} MB): {step}."
        )
    if longest > p.LAMBDA_MAX_S:
        obstacles.append(too_slow(longest, sharded=sharded))
    return Prediction(
        memory_mb=memory_mb,
        ephemeral_storage_mb=p.LAMBDA_STORAGE_FREE_MB,
        seconds=seconds,
        function_s=longest,
        billed_s=billed,
        peak_memory_mb=peak_mb,
        invocations=functions,
        s3_gets=gets,
        s3_puts=functions,
        client_puts=q.clients * (q.shards if sharded else 1),
        sqs_requests=0,
        obstacles=tuple(obstacles),
    )


def _handler_s(piece: int, inputs: int, memory_mb: int) -> float:
    share = cpu_share(memory_mb)

    def moving(nbytes: int) -> float:
        return max(
            transfer_s(nbytes, p.CONNECTION_BYTES_PER_S, p.SEQUENTIAL_BYTES_PER_S),
            nbytes / 1e9 * p.TRANSFER_CPU_S_PER_GB / share,
        )

    calls = (inputs + 1) * (p.FIRST_BYTE_S + p.CALL_CPU_S / share)
    return calls + moving(inputs * piece) + moving(piece) + inputs * piece / 1e9 * p.SUM_CPU_S_PER_GB / share
