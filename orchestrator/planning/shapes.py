"""What the functions of a topology hold, read and write, and what limits them.

Every planning rule has two cases, the sharded shape and the tree shape. Code that plans asks the shape and does not
compare topologies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.protocol.tree import Tree, fan_in
from orchestrator.errors import PlanningError
from orchestrator.planning.prices import LAMBDA_MAX_MEMORY_MB, S3_MAX_PUT_BYTES
from orchestrator.planning.sizing import load_sizing

# Functions that run at the same time: pairs of a number of functions and the inputs of each, most inputs first.
Level = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Shape(ABC):
    """The functions of one round.

    Attributes:
        topology: `grads-sharding`, `lambda-fl` or `lifl`.
        model_bytes: bytes of one update's tensors.
        clients: updates averaged.
        shards: M; None for a tree.
        sum_bytes: bytes of the float64 sums that a function holds and passes on; 0 if it passes on averaged values.
        levels: the functions, level by level; a level starts when the one before has ended.
        most_inputs: inputs of the busiest function.
        next_step: what to do if a function would exceed a limit.
    """

    topology: str
    model_bytes: int
    clients: int
    shards: int | None
    sum_bytes: int
    levels: Sequence[Level]
    most_inputs: int
    next_step: ClassVar[str]

    @property
    def parts(self) -> int:
        """Pieces into which an update is cut: M, and 1 for a tree."""
        return self.shards or 1

    @property
    def piece_bytes(self) -> int:
        """Bytes of one update that a function reads."""
        return -(-self.model_bytes // self.parts)

    @property
    def moved_bytes(self) -> int:
        """Bytes of one input or output of the busiest function."""
        return self.sum_bytes or self.piece_bytes

    @abstractmethod
    def check_memory(self, memory_mb: int, memory_cap_mb: int) -> None:
        """Raise PlanningError if functions of `memory_mb` exceed the cap, or their sums exceed what S3 stores."""

    @abstractmethod
    def check_time(self, expected_s: Fraction, bytes_per_s: Fraction) -> None:
        """Raise PlanningError if Lambda would stop a function that takes `expected_s`."""


@dataclass(frozen=True)
class ShardedShape(Shape):
    """grads-sharding: M functions, each of which averages one shard of all updates."""

    next_step = "use more shards"

    def check_memory(self, memory_mb: int, memory_cap_mb: int) -> None:
        if memory_mb > memory_cap_mb:
            raise PlanningError(
                f"{self.clients:,} clients need functions of {memory_mb:,} MB, the cap is {memory_cap_mb:,} MB. Raise "
                "the cap (up to 10,240 MB, if the account allows it) or average fewer clients."
            )

    def check_time(self, expected_s: Fraction, bytes_per_s: Fraction) -> None:
        most_s = load_sizing().timeout_max_s
        if expected_s > most_s:
            raise PlanningError(
                f"A shard of {self.piece_bytes:,} bytes from {self.clients:,} clients takes a function "
                f"{math.ceil(expected_s):,} s at {float(bytes_per_s) / 1e6:.0f} MB/s, Lambda stops it after {most_s} "
                f"s: {self.next_step}."
            )


@dataclass(frozen=True)
class TreeShape(Shape):
    """lambda-fl or lifl: aggregators that hold float64 sums of the complete model and pass them to the level above."""

    next_step = "use grads-sharding"

    def check_memory(self, memory_mb: int, memory_cap_mb: int) -> None:
        if memory_mb > memory_cap_mb:
            raise PlanningError(
                f"An aggregator of {self.topology} holds the complete model as float64 sums and needs {memory_mb:,} MB "
                f"for a model of {self.model_bytes:,} bytes, the cap is {memory_cap_mb:,} MB: {self.next_step}"
                + (", or raise the cap if the account allows it." if memory_mb <= LAMBDA_MAX_MEMORY_MB else ".")
            )
        if self.sum_bytes > S3_MAX_PUT_BYTES:
            raise PlanningError(
                f"A float64 partial sum has {self.sum_bytes:,} bytes, a single PUT takes 5 GiB: {self.next_step}."
            )

    def check_time(self, expected_s: Fraction, bytes_per_s: Fraction) -> None:
        most_s = load_sizing().timeout_max_s
        if expected_s > most_s:
            raise PlanningError(
                f"An aggregator of {self.topology} for {self.clients:,} clients and a model of {self.model_bytes:,} "
                f"bytes takes {math.ceil(expected_s):,} s, Lambda stops it after {most_s} s: {self.next_step}."
            )


def shape_of(topology: str, model_bytes: int, clients: int, shards: int | None) -> Shape:
    """The shape of a round; `shards` is for grads-sharding, the trees ignore it."""
    if topology == GRADS_SHARDING:
        assert shards is not None
        return ShardedShape(topology, model_bytes, clients, shards, 0, [[(shards, clients)]], clients)
    tree = Tree(topology, clients)
    counts = [Counter(len(tree.inputs(n, i)) for i in range(width)) for n, width in enumerate(tree.widths)]
    levels = [[(count, inputs) for inputs, count in sorted(level.items(), reverse=True)] for level in counts]
    sum_bytes = load_sizing().tree_sum_factor * model_bytes
    return TreeShape(topology, model_bytes, clients, None, sum_bytes, levels, fan_in(topology, clients))
