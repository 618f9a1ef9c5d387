"""The trees of lambda-FL and LIFL, with which GradsSharding is compared: which aggregator adds up which inputs.

lambda-FL has two levels: each leaf adds up ceil(sqrt N) clients, and one root adds up the leaves. LIFL has three
levels, whose aggregators have at most ceil(cbrt N) inputs each. Every aggregator holds the whole model. Inputs are
taken in order, so the groups follow the ascending client ids. Source of both: GradsSharding, arXiv:2604.22072.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.topologies import GRADS_SHARDING, LAMBDA_FL, LIFL

_LEVELS = {LAMBDA_FL: 2, LIFL: 3}
MAX_LEVELS = max(_LEVELS.values())


def fan_in(topology: str, clients: int) -> int:
    """The largest number of inputs of one aggregator in a tree over `clients` clients."""
    if topology == LAMBDA_FL:
        return math.isqrt(clients - 1) + 1
    return next(k for k in range(1, clients + 1) if k**3 >= clients)


@dataclass(frozen=True)
class Tree:
    """A tree, `lambda-fl` or `lifl`, over N = `clients` participants, at least one."""

    topology: str
    clients: int

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Aggregators per level, from the leaves to the one root."""
        width, widths = self.clients, []
        for _ in range(_LEVELS[self.topology] - 1):
            width = -(-width // fan_in(self.topology, self.clients))
            widths.append(width)
        return (*widths, 1)

    @property
    def root(self) -> int:
        """The highest level, which has one aggregator."""
        return len(self.widths) - 1

    def inputs(self, level: int, aggregator: int) -> range:
        """What an aggregator adds up, by index: participants on level 0, else aggregators of the level below."""
        below = self.clients if level == 0 else self.widths[level - 1]
        if level == self.root:
            return range(below)
        step = fan_in(self.topology, self.clients)
        return range(aggregator * step, min(below, (aggregator + 1) * step))

    def participants(self, level: int, aggregator: int) -> range:
        """The participants whose updates an aggregator's sum contains."""
        inputs = self.inputs(level, aggregator)
        if level == 0:
            return inputs
        return range(self.participants(level - 1, inputs[0]).start, self.participants(level - 1, inputs[-1]).stop)


def tree_of(manifest: RoundManifest) -> Tree:
    """The tree of a round.

    Raises:
        InvalidContract: the round is averaged by shards, not by a tree.
    """
    if manifest.topology == GRADS_SHARDING:
        raise InvalidContract(f"Round {manifest.round_id} is averaged by shards, not by a tree.")
    return Tree(manifest.topology, len(manifest.participants))
