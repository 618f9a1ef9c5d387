"""The handler that GradsSharding (arXiv:2604.22072) measured: profile "whole-object".

It reads one whole object after the other through boto3 and np.load, keeps a float32 running sum, and stores the result
at the end. Its functions are invoked directly and warm, as many at once as the account allows. The profile is compared
with the paper's measurements, and the streaming worker with the profile.
"""

from __future__ import annotations

import math

from orchestrator.planning import prices as p
from orchestrator.planning.prediction import Prediction, count_functions, spread_s, too_slow, transfer_s
from orchestrator.planning.question import Question
from orchestrator.planning.shapes import Shape
from orchestrator.planning.sizing import cpu_share

_MIB = 1024**2


def whole_object(shape: Shape, question: Question, memory_mb: int | None) -> Prediction:
    """Predict a round of the paper's handlers.

    Args:
        memory_mb: function memory, MB; None: by the paper's rule, 3 times the shard (or gradient) plus 450 MB, at most
            the cap.
    """
    cap_mb, concurrency = question.account.memory_cap_mb, question.concurrency
    if memory_mb is None:
        memory_mb = min(max(p.LAMBDA_MIN_MEMORY_MB, math.ceil(_copies_mb(shape) + p.PAPER_BASE_MB)), cap_mb)
    seconds = billed = longest = 0.0
    for level in shape.levels:
        work = {inputs: _handler_s(shape.piece_bytes, inputs, memory_mb) for _, inputs in level}
        slowest, count = max(work.values()), count_functions(level)
        # No ramp-up: the paper's coordinator invokes all functions of a level at once, as far as the account allows.
        turns = -(-count // concurrency)
        seconds += p.INVOKE_S + turns * slowest + spread_s(min(count, concurrency), slowest)
        billed += sum(functions * work[inputs] for functions, inputs in level)
        longest = max(longest, slowest)
    functions = sum(count_functions(level) for level in shape.levels)
    return Prediction(
        memory_mb=memory_mb,
        ephemeral_storage_mb=p.LAMBDA_STORAGE_FREE_MB,
        seconds=seconds,
        function_s=longest,
        billed_s=billed,
        peak_memory_mb=_peak_mb(shape),
        invocations=functions,
        s3_gets=sum(count * inputs for level in shape.levels for count, inputs in level),
        s3_puts=functions,
        client_puts=shape.clients * shape.parts,
        sqs_requests=0,
        obstacles=_obstacles(shape, cap_mb, memory_mb, longest),
    )


def _copies_mb(shape: Shape) -> float:
    return p.PAPER_COPIES * shape.piece_bytes / _MIB


def _peak_mb(shape: Shape) -> int:
    return math.ceil(_copies_mb(shape)) + p.RUNTIME_MB


def _handler_s(piece_bytes: int, inputs: int, memory_mb: int) -> float:
    share = cpu_share(memory_mb)

    def moving_s(nbytes: int) -> float:
        return max(
            transfer_s(nbytes, p.CONNECTION_BYTES_PER_S, p.SEQUENTIAL_BYTES_PER_S),
            nbytes / 1e9 * p.TRANSFER_CPU_S_PER_GB / share,
        )

    read_bytes = inputs * piece_bytes
    calls = (inputs + 1) * (p.FIRST_BYTE_S + p.CALL_CPU_S / share)
    return calls + moving_s(read_bytes) + moving_s(piece_bytes) + read_bytes / 1e9 * p.SUM_CPU_S_PER_GB / share


def _obstacles(shape: Shape, cap_mb: int, memory_mb: int, function_s: float) -> tuple[str, ...]:
    peak_mb = _peak_mb(shape)
    found = []
    if memory_mb > cap_mb:
        found.append(f"{memory_mb:,} MB of memory are more than the cap of {cap_mb:,} MB.")
    if peak_mb > memory_mb:
        found.append(
            f"The handler holds 3 copies of {shape.piece_bytes:,} bytes, about {peak_mb:,} MB; the function has "
            f"{memory_mb:,} MB (cap {cap_mb:,} MB): {shape.next_step}."
        )
    if function_s > p.LAMBDA_MAX_S:
        found.append(too_slow(function_s, shape))
    return tuple(found)
