"""The sizing rule of functions, whose constants are in sizing.json. infra/sizing applies the same rule in Terraform.

The arithmetic is exact, as Terraform's is, so that both round up the same numbers.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources


@dataclass(frozen=True)
class Sizing:
    """The constants of sizing.json. `_mb` are MiB, as Lambda counts them; `bytes_per_s` are decimal."""

    memory_mb: int
    worker_peak_mb: int
    manifest_mb_per_1000_clients: int
    memory_step_mb: int
    tree_sum_factor: int
    vcpu_per_mb: Fraction
    cpu_seconds_per_gb: Fraction
    cpu_seconds_per_get: Fraction
    network_bytes_per_s: int
    timeout_safety: int
    timeout_min_s: int
    timeout_max_s: int
    ephemeral_storage_min_mb: int
    ephemeral_storage_max_mb: int
    ephemeral_storage_spare_mb: int

    @property
    def network(self) -> float:
        """A function's network rate after its burst, bytes per second."""
        return float(self.network_bytes_per_s)


@functools.cache
def load_sizing() -> Sizing:
    """The constants, which Terraform reads too."""
    text = resources.files("orchestrator.planning").joinpath("sizing.json").read_text(encoding="utf-8")
    document = json.loads(text, parse_float=Fraction)
    del document["about"]
    return Sizing(**document)


def worker_peak_mb(clients: int, sum_bytes: int = 0) -> int:
    """Peak memory of a streaming worker, MB. It holds pieces and the manifest; the shard's size does not matter.

    Args:
        sum_bytes: bytes of the float64 sums of the complete model, which a tree's aggregator holds in addition.
    """
    return math.ceil(_pieces_mb(clients) + Fraction(sum_bytes, 2**20))


def rule_memory_mb(clients: int, sum_bytes: int = 0) -> int:
    """Function memory by the rule, MB: 1.25 times the worker's peak, plus the sums, rounded up to a whole step."""
    sizing = load_sizing()
    needed = _pieces_mb(clients) * Fraction(5, 4) + Fraction(sum_bytes, 2**20)
    return max(sizing.memory_mb, sizing.memory_step_mb * math.ceil(needed / sizing.memory_step_mb))


def _pieces_mb(clients: int) -> Fraction:
    sizing = load_sizing()
    return sizing.worker_peak_mb + Fraction(sizing.manifest_mb_per_1000_clients * clients, 1000)


def storage_mb(output_bytes: int) -> int:
    """Ephemeral storage for a function's output and stored sums, MB; may exceed Lambda's maximum."""
    sizing = load_sizing()
    return max(
        sizing.ephemeral_storage_min_mb, math.ceil(Fraction(output_bytes, 2**20)) + sizing.ephemeral_storage_spare_mb
    )


def cpu_share(memory_mb: int) -> float:
    """The share of a vCPU that one thread gets: memory / 1,769 MB, at most 1."""
    return min(1.0, float(memory_mb * load_sizing().vcpu_per_mb))


def averaging_rate(memory_mb: int) -> Fraction:
    """Bytes per second that a function reads and averages: bound by the network or by its CPU share."""
    sizing = load_sizing()
    return min(Fraction(sizing.network_bytes_per_s), 10**9 * memory_mb * sizing.vcpu_per_mb / sizing.cpu_seconds_per_gb)
