"""How long one configuration's round takes, what it asks of AWS, and what stands in its way. No prices, no choices.

This is the profile "streaming": this kit's worker, which reads byte ranges of all clients at once, with one thread and
a few pieces in memory. The paper's handler is in orchestrator/whole_object.py. In both, moving bytes takes
max(bytes / network, CPU seconds / CPU share): the network fills buffers while the CPU is throttled.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from lambdas.averaging.mean import Pacing
from lambdas.protocol.limits import MAX_PART_BYTES, MIN_PART_BYTES
from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.protocol.tree import Tree
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.errors import PlanningError
from orchestrator.planning import prices as p
from orchestrator.planning.sizing import load_sizing, rule_memory_mb, size_lane, storage_mb, worker_peak_mb

_FLOAT32 = 4
_PACING = Pacing()


@dataclass(frozen=True)
class Question:
    """One configuration, validated. `memory_mb` None: by the profile's rule."""

    model_bytes: int
    clients: int
    topology: str
    shards: int
    memory_mb: int | None
    memory_cap_mb: int
    concurrency: int


@dataclass(frozen=True)
class Prediction:
    """What one configuration takes.

    Attributes:
        seconds: from closing the round to the published global model; clients' uploads come before.
        function_s: the longest function, without INIT, seconds.
        billed_s: all functions, INIT included, seconds.
        peak_memory_mb: resident memory of the largest function, MB.
        s3_gets, s3_puts: functions and orchestrator; whole-object: functions.
        client_puts: the clients' uploads, parts included.
        obstacles: sentences; empty where the configuration works.
    """

    memory_mb: int
    ephemeral_storage_mb: int
    seconds: float
    function_s: float
    billed_s: float
    peak_memory_mb: int
    invocations: int
    s3_gets: int
    s3_puts: int
    client_puts: int
    sqs_requests: int
    obstacles: tuple[str, ...]


# --- who aggregates what -------------------------------------------------------------------------------------------

# One level of functions that run at the same time: (how many functions, inputs of each), the most inputs first.
Level = Sequence[tuple[int, int]]


def levels(topology: str, clients: int, shards: int = 1) -> list[Level]:
    """The functions of one round, level by level: `shards` that read all clients, or those of a tree."""
    if topology == GRADS_SHARDING:
        return [[(shards, clients)]]
    tree = Tree(topology, clients)
    sizes = [Counter(len(tree.inputs(n, i)) for i in range(width)) for n, width in enumerate(tree.widths)]
    return [[(count, inputs) for inputs, count in sorted(level.items(), reverse=True)] for level in sizes]


def count_functions(level: Level) -> int:
    """How many functions a level has."""
    return sum(functions for functions, _ in level)


# --- time ----------------------------------------------------------------------------------------------------------


def cpu_share(memory_mb: int) -> float:
    """How much of a vCPU one thread gets: memory / 1,769 MB, at most all of it."""
    return min(1.0, float(memory_mb * load_sizing().vcpu_per_mb))


def transfer_s(nbytes: float, burst_rate: float, rate: float) -> float:
    """Seconds to move `nbytes` one way in a fresh function: the burst at one rate, the rest at another (bytes/s)."""
    return min(nbytes, p.BURST_BYTES) / burst_rate + max(0.0, nbytes - p.BURST_BYTES) / rate


def spread_s(functions: int, seconds: float) -> float:
    """How much longer than `seconds` the slowest of `functions` equal functions takes.

    The expected maximum of a normal sample (Blom, Statistical Estimates and Transformed Beta-Variables, 1958).
    """
    if functions < 2:
        return 0.0
    return p.FUNCTION_SPREAD * seconds * NormalDist().inv_cdf((functions - 0.375) / (functions + 0.25))


def ramp_up(jobs: int, duration_s: float, concurrency: int) -> tuple[float, int]:
    """Run `jobs` equal jobs through an SQS event source mapping that starts with few invocations and adds more.

    Args:
        duration_s: of one warm invocation; a new one takes INIT_S longer.
        concurrency: how many run at once at most.

    Returns:
        Seconds from the first message to the last job's end; how many invocations started cold.
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


# --- profile "streaming" -------------------------------------------------------------------------------------------


def streaming(question: Question) -> Prediction:
    """Predict a round of this kit's workers, every environment cold.

    The trees stream their inputs like the sharded worker, but hold float64 sums of the whole model, twice an update's
    bytes, and hand them on.
    """
    q = question
    sharded = q.topology == "grads-sharding"
    sum_bytes = 0 if sharded else load_sizing().tree_sum_factor * q.model_bytes
    memory_mb = rule_memory_mb(q.clients, sum_bytes) if q.memory_mb is None else q.memory_mb
    piece = -(-q.model_bytes // q.shards) if sharded else q.model_bytes
    rows = levels(q.topology, q.clients, q.shards)
    seconds = (q.clients / REQUESTS_AT_ONCE + p.ORCHESTRATOR_REQUESTS) * p.ORCHESTRATOR_REQUEST_S
    billed = longest = 0.0
    gets, puts, jobs = q.clients + p.ROUND_GETS, p.ROUND_PUTS, 0
    for index, level in enumerate(rows):
        read = piece if index == 0 else sum_bytes
        write = piece if sharded or index == len(rows) - 1 else sum_bytes
        functions = count_functions(level)
        requests = {inputs: inputs * _requests_per_input(piece, inputs) for _, inputs in level}
        work = {inputs: _worker_s(read, inputs, requests[inputs], write, q.clients, memory_mb) for _, inputs in level}
        slowest = max(work.values())
        level_s, cold = ramp_up(functions, slowest, q.concurrency)
        update_gets = sum(count * requests[inputs] for count, inputs in level)
        level_s += spread_s(min(functions, q.concurrency), slowest)
        seconds += 2 * p.QUEUE_S + max(level_s, update_gets / p.S3_GETS_PER_S)
        billed += sum(count * work[inputs] for count, inputs in level) + cold * p.INIT_S
        gets += update_gets + 2 * functions  # the manifest and the coordinator's record
        puts += functions
        jobs += functions
        longest = max(longest, slowest)
    puts += -(-q.clients // p.S3_LIST_PAGE)
    if sharded:
        if as_objects(q.model_bytes, q.shards):
            gets += q.shards
            puts += p.upload_puts(q.model_bytes) - 2  # in place of the workers' multipart upload
            seconds += 2 * q.model_bytes / p.ORCHESTRATOR_BYTES_PER_S + q.shards * p.ORCHESTRATOR_REQUEST_S
        puts += -(-q.shards // p.S3_LIST_PAGE)
    return Prediction(
        memory_mb=memory_mb,
        ephemeral_storage_mb=storage_mb(piece),  # what is averaged is spooled; sums are sent from memory
        seconds=seconds,
        function_s=longest,
        billed_s=billed,
        peak_memory_mb=worker_peak_mb(q.clients, sum_bytes),
        invocations=jobs,
        s3_gets=gets,
        s3_puts=puts,
        client_puts=q.clients * p.upload_puts(q.model_bytes),
        sqs_requests=p.sqs_requests(jobs, seconds),
        obstacles=_streaming_obstacles(q, memory_mb, piece, worker_peak_mb(q.clients, sum_bytes), longest),
    )


def as_objects(model_bytes: int, shards: int) -> bool:
    """Whether the shards are too small for S3's multipart upload, so that the orchestrator puts them together."""
    return shards > 1 and model_bytes // shards < MIN_PART_BYTES


def _requests_per_input(piece: int, inputs: int) -> int:
    return 1 if inputs <= _PACING.max_streams else -(-piece // (_PACING.window_elements * _FLOAT32))


def _worker_s(read: int, inputs: int, requests: int, write: int, clients: int, memory_mb: int) -> float:
    sizing, share = load_sizing(), cpu_share(memory_mb)
    cpu_per_byte = float(sizing.cpu_seconds_per_gb) / 1e9
    total = read * inputs
    manifest = p.MANIFEST_BYTES_PER_CLIENT * clients
    reading = max(
        transfer_s(total + manifest, p.BURST_BYTES_PER_S, sizing.network),
        (cpu_per_byte * total + float(sizing.cpu_seconds_per_get) * requests) / share,
        p.FIRST_BYTE_S * requests / _PACING.ahead if inputs > _PACING.max_streams else p.FIRST_BYTE_S,
    )
    writing = max(transfer_s(write, p.BURST_BYTES_PER_S, sizing.network), cpu_per_byte * write / share)
    starting = (p.START_CPU_S + p.MANIFEST_CPU_S_PER_CLIENT * clients) / share
    return starting + reading + writing + 3 * p.FIRST_BYTE_S  # manifest, upload, result message


def _streaming_obstacles(q: Question, memory_mb: int, piece: int, peak_mb: int, function_s: float) -> tuple[str, ...]:
    found = []
    try:
        size_lane(
            q.model_bytes, q.clients, q.shards, topology=q.topology,
            memory_cap_mb=q.memory_cap_mb, memory_mb_override=q.memory_mb,
        )  # fmt: skip
    except PlanningError as error:
        found.append(f"{error}")
    if peak_mb > memory_mb:
        found.append(f"The worker needs {peak_mb:,} MB of memory, the function has {memory_mb:,} MB.")
    if q.shards > q.model_bytes:
        found.append(f"{q.shards:,} shards of {q.model_bytes:,} bytes: some would be empty.")
    if piece > MAX_PART_BYTES and not found:
        found.append(f"A shard of {piece:,} bytes is larger than S3's largest part, 5 GiB: use more shards.")
    if function_s + p.INIT_S > p.LAMBDA_MAX_S and not found:
        found.append(too_slow(function_s, sharded=q.topology == GRADS_SHARDING))
    return tuple(found)


def too_slow(function_s: float, *, sharded: bool) -> str:
    """The sentence for a function that Lambda would stop; `function_s` in seconds."""
    step = "use more shards" if sharded else "use grads-sharding"
    return f"One function takes about {function_s:,.0f} s, Lambda stops it after {p.LAMBDA_MAX_S:.0f} s: {step}."
