"""The resources that one configuration of a round uses, and the time rules that both worker profiles share.

In both profiles, moving bytes takes max(bytes / network rate, CPU seconds / CPU share): the network fills buffers while
the CPU is throttled.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from orchestrator.planning import prices as p
from orchestrator.planning.shapes import Level, Shape


@dataclass(frozen=True)
class Prediction:
    """The resources that one configuration uses.

    Attributes:
        seconds: from closing the round to the published global model; clients' uploads come before.
        function_s: the longest function, without INIT, seconds.
        billed_s: all functions, INIT included, seconds.
        peak_memory_mb: resident memory of the largest function, MB.
        s3_gets, s3_puts: requests of functions and coordinator; in the profile whole-object, of functions only.
        client_puts: requests of the clients' uploads, parts included.
        obstacles: sentences that say why the configuration cannot work; empty if it can.
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


def count_functions(level: Level) -> int:
    """The number of functions of a level."""
    return sum(functions for functions, _ in level)


def transfer_s(nbytes: float, burst_rate: float, rate: float) -> float:
    """Seconds to move `nbytes` one way in a fresh function: the burst at one rate, the rest at another (bytes/s)."""
    return min(nbytes, p.BURST_BYTES) / burst_rate + max(0.0, nbytes - p.BURST_BYTES) / rate


def spread_s(functions: int, seconds: float) -> float:
    """Seconds by which the slowest of `functions` equal functions exceeds their mean of `seconds`.

    The expected maximum of a normal sample (Blom, Statistical Estimates and Transformed Beta-Variables, 1958).
    """
    if functions < 2:
        return 0.0
    return p.FUNCTION_SPREAD * seconds * NormalDist().inv_cdf((functions - 0.375) / (functions + 0.25))


def too_slow(function_s: float, shape: Shape) -> str:
    """The obstacle of a function that takes `function_s` seconds, longer than Lambda lets it run."""
    return (
        f"One function takes about {function_s:,.0f} s, Lambda stops it after {p.LAMBDA_MAX_S:.0f} s: "
        f"{shape.next_step}."
    )
