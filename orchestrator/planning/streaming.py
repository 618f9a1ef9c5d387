"""The worker of this project: profile "streaming". It reads byte ranges of all clients at once with one thread.

It holds a few pieces in memory, for a model of any size. The handler that the paper measured is in
paper_model.py.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from lambdas.averaging.pacing import Pacing
from lambdas.protocol.limits import MAX_PART_BYTES, MIN_PART_BYTES
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.errors import PlanningError
from orchestrator.planning import prices as p
from orchestrator.planning.lane_size import size_function
from orchestrator.planning.prediction import Prediction, count_functions, spread_s, too_slow, transfer_s
from orchestrator.planning.question import Question
from orchestrator.planning.shapes import Shape
from orchestrator.planning.sizing import cpu_share, load_sizing, rule_memory_mb, storage_mb, worker_peak_mb

_FLOAT32 = 4
_PACING = Pacing()


def streaming(shape: Shape, question: Question, memory_mb: int | None) -> Prediction:
    """Predict a round of this project's workers, all of which start cold.

    The trees' aggregators stream their inputs as the sharded worker does, but hold and pass on float64 sums of the
    complete model.

    Args:
        memory_mb: function memory, MB; None: by the rule of sizing.json.
    """
    if memory_mb is None:
        memory_mb = rule_memory_mb(shape.clients, shape.sum_bytes)
    steps = [_level_step(shape, index, memory_mb, question.concurrency) for index in range(len(shape.levels))]
    steps.append(_coordinator_step(shape))
    requests_s = (shape.clients / REQUESTS_AT_ONCE + p.COORDINATOR_REQUESTS) * p.COORDINATOR_REQUEST_S
    seconds = sum((step.seconds for step in steps), requests_s)
    functions = sum(count_functions(level) for level in shape.levels)
    longest = max(step.function_s for step in steps)
    return Prediction(
        memory_mb=memory_mb,
        ephemeral_storage_mb=storage_mb(shape.piece_bytes),  # averaged values are spooled, sums are sent from memory
        seconds=seconds,
        function_s=longest,
        billed_s=sum(step.billed_s for step in steps),
        peak_memory_mb=worker_peak_mb(shape.clients, shape.sum_bytes),
        invocations=functions,
        s3_gets=sum(step.gets for step in steps),
        s3_puts=sum(step.puts for step in steps),
        client_puts=shape.clients * p.upload_puts(shape.model_bytes),
        sqs_requests=p.sqs_requests(functions, seconds),
        obstacles=_obstacles(shape, question.account.memory_cap_mb, memory_mb, longest),
    )


@dataclass(frozen=True)
class _Step:
    """What one level of functions, or the coordinator, adds to a round."""

    seconds: float
    gets: int
    puts: int
    billed_s: float = 0.0
    function_s: float = 0.0


def _level_step(shape: Shape, index: int, memory_mb: int, concurrency: int) -> _Step:
    """The functions of one level: they read updates on the first, sums above, and the last one writes the model."""
    level = shape.levels[index]
    read = shape.piece_bytes if index == 0 else shape.sum_bytes
    write = shape.piece_bytes if index == len(shape.levels) - 1 else shape.sum_bytes
    functions = count_functions(level)
    function_s = {inputs: _function_s(shape, memory_mb, inputs, read * inputs, write) for _, inputs in level}
    slowest = max(function_s.values())
    level_s, cold = ramp_up(functions, slowest, concurrency)
    level_s += spread_s(min(functions, concurrency), slowest)
    update_gets = sum(count * _gets(shape, inputs) for count, inputs in level)
    return _Step(
        seconds=2 * p.QUEUE_S + max(level_s, update_gets / p.S3_GETS_PER_S),
        gets=update_gets + 2 * functions,  # the manifest and the coordinator's record
        puts=functions,
        billed_s=sum(count * function_s[inputs] for count, inputs in level) + cold * p.INIT_S,
        function_s=slowest,
    )


def _coordinator_step(shape: Shape) -> _Step:
    """The coordinator's requests, and its time if it assembles the model from shards itself."""
    gets, puts, seconds = shape.clients + p.ROUND_GETS, p.ROUND_PUTS, 0.0
    puts += -(-shape.clients // p.S3_LIST_PAGE)
    if shape.shards is None:
        return _Step(seconds, gets, puts)
    puts += -(-shape.shards // p.S3_LIST_PAGE)
    if as_objects(shape.model_bytes, shape.shards):
        gets += shape.shards
        puts += p.upload_puts(shape.model_bytes) - 2  # in place of the workers' multipart upload
        seconds = 2 * shape.model_bytes / p.COORDINATOR_BYTES_PER_S + shape.shards * p.COORDINATOR_REQUEST_S
    return _Step(seconds, gets, puts)


def as_objects(model_bytes: int, shards: int) -> bool:
    """Whether shards are below S3's smallest part, so that the coordinator assembles the model."""
    return shards > 1 and model_bytes // shards < MIN_PART_BYTES


def ramp_up(jobs: int, duration_s: float, concurrency: int) -> tuple[float, int]:
    """Run `jobs` equal jobs through an SQS event source mapping, which starts with few invocations and adds more.

    Args:
        duration_s: of one warm invocation; a new one takes INIT_S longer.
        concurrency: the most invocations at the same time.

    Returns:
        Seconds from the first message to the end of the last job, and the number of cold starts.
    """
    slots = min(concurrency, p.MAPPING_MAX)
    ends: list[float] = []
    cold, last = 0, 0.0
    for _ in range(jobs):
        opens_at = max(0, cold - p.MAPPING_START + 1) / p.MAPPING_PER_S if cold < slots else math.inf
        if ends and ends[0] <= opens_at:
            end = heapq.heappop(ends) + duration_s
        else:
            end = opens_at + p.INIT_S + duration_s
            cold += 1
        heapq.heappush(ends, end)
        last = max(last, end)
    return last, cold


def _gets(shape: Shape, inputs: int) -> int:
    """The GETs with which one function reads its inputs."""
    if inputs <= _PACING.max_streams:
        return inputs
    return inputs * -(-shape.piece_bytes // (_PACING.window_elements * _FLOAT32))


def _function_s(shape: Shape, memory_mb: int, inputs: int, read_bytes: int, write_bytes: int) -> float:
    """Seconds of one warm function: start, read and average, store, and wait for manifest, upload and result.

    Args:
        inputs: the streams that the function reads, together `read_bytes`.
    """
    sizing, share, gets = load_sizing(), cpu_share(memory_mb), _gets(shape, inputs)
    cpu_per_byte = float(sizing.cpu_seconds_per_gb) / 1e9
    manifest = p.MANIFEST_BYTES_PER_CLIENT * shape.clients
    reading = max(
        transfer_s(read_bytes + manifest, p.BURST_BYTES_PER_S, sizing.network),
        (cpu_per_byte * read_bytes + float(sizing.cpu_seconds_per_get) * gets) / share,
        p.FIRST_BYTE_S * gets / _PACING.max_streams if inputs > _PACING.max_streams else p.FIRST_BYTE_S,
    )
    writing = max(transfer_s(write_bytes, p.BURST_BYTES_PER_S, sizing.network), cpu_per_byte * write_bytes / share)
    starting = (p.START_CPU_S + p.MANIFEST_CPU_S_PER_CLIENT * shape.clients) / share
    return starting + reading + writing + 3 * p.FIRST_BYTE_S


def _obstacles(shape: Shape, cap_mb: int, memory_mb: int, function_s: float) -> tuple[str, ...]:
    found = []
    try:
        size_function(shape, cap_mb, memory_mb)
    except PlanningError as error:
        found.append(f"{error}")
    peak_mb = worker_peak_mb(shape.clients, shape.sum_bytes)
    if peak_mb > memory_mb:
        found.append(f"The worker needs {peak_mb:,} MB of memory, the function has {memory_mb:,} MB.")
    if shape.parts > shape.model_bytes:
        found.append(f"{shape.parts:,} shards of {shape.model_bytes:,} bytes: some would be empty.")
    if shape.piece_bytes > MAX_PART_BYTES and not found:
        found.append(
            f"A shard of {shape.piece_bytes:,} bytes is larger than S3's largest part, 5 GiB: use more shards."
        )
    if function_s + p.INIT_S > p.LAMBDA_MAX_S and not found:
        found.append(too_slow(function_s, shape))
    return tuple(found)
