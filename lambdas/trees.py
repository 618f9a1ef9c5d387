"""The trees that GradsSharding is compared with: who aggregates what, and their job. Standard library only.

lambda-FL (two levels): leaves add up ceil(sqrt N) clients each, one root adds up the leaves. LIFL (three levels): every
aggregator has at most ceil(cbrt N) inputs. Every aggregator holds the whole model. Inputs are taken in order, so the
groups follow the clients' ascending ids. (Both as GradsSharding, arXiv:2604.22072, describes and measured them.)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property

from lambdas.contract import (
    GRADS_SHARDING,
    LAMBDA_FL,
    MAX_CLIENTS,
    SCHEMA,
    Fields,
    RoundManifest,
    ShardJob,
    canonical_json,
)
from lambdas.errors import InvalidContract


def fan_in(architecture: str, clients: int) -> int:
    """The most inputs that one aggregator of a tree over `clients` clients has."""
    if architecture == LAMBDA_FL:
        return math.isqrt(clients - 1) + 1
    return next(k for k in range(1, clients + 1) if k**3 >= clients)


@dataclass(frozen=True)
class Tree:
    """A tree over the participants of a round.

    Attributes:
        architecture: `lambda-fl` or `lifl`.
        clients: N, at least 1.
    """

    architecture: str
    clients: int

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Aggregators per level, from the leaves to the one root."""
        width, widths = self.clients, []
        for _ in range(1 if self.architecture == LAMBDA_FL else 2):
            width = -(-width // fan_in(self.architecture, self.clients))
            widths.append(width)
        return (*widths, 1)

    @property
    def root(self) -> int:
        """The highest level."""
        return len(self.widths) - 1

    def inputs(self, level: int, aggregator: int) -> range:
        """What an aggregator adds up: participants on level 0, else aggregators of the level below."""
        below = self.clients if level == 0 else self.widths[level - 1]
        if level == self.root:
            return range(below)
        step = fan_in(self.architecture, self.clients)
        return range(aggregator * step, min(below, (aggregator + 1) * step))

    def participants(self, level: int, aggregator: int) -> range:
        """The participants whose updates an aggregator's sum contains."""
        inputs = self.inputs(level, aggregator)
        if level == 0:
            return inputs
        return range(self.participants(level - 1, inputs[0]).start, self.participants(level - 1, inputs[-1]).stop)


def tree_of(manifest: RoundManifest) -> Tree:
    """The tree of a round that is averaged by one.

    Raises:
        InvalidContract: it is averaged by shards.
    """
    if manifest.architecture == GRADS_SHARDING:
        raise InvalidContract(f"Round {manifest.round_id} is averaged by shards, not by a tree.")
    return Tree(manifest.architecture, len(manifest.participants))


# --- job message ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Partial:
    """Where one input of an aggregator is: an object, pinned by its ETag, or a segment of shared memory, by name."""

    etag: str | None = None
    segment: str | None = None


@dataclass(frozen=True)
class TreeJob:
    """The SQS message that asks a worker to be one aggregator.

    Attributes:
        inputs: the partial sums of the level below, in order; empty on level 0, whose updates the manifest names.
        attempt: 0 when first queued; more when queued again. A worker that sees more than 0, or a redelivery, looks
            first whether the result is already there.
        in_s3: store the partial sum in S3 even where shared memory is at hand: somebody elsewhere needs it.
    """

    round_id: str
    manifest_sha256: str
    level: int
    aggregator: int
    inputs: tuple[Partial, ...] = ()
    attempt: int = 0
    in_s3: bool = False

    def to_json(self) -> str:
        return canonical_json({"schema": SCHEMA, **asdict(self)}).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> TreeJob:
        f = Fields.parse("Tree job", text)
        return cls(
            round_id=f.name("round_id", "round"),
            manifest_sha256=f.digest("manifest_sha256"),
            level=f.integer("level", 0, 2),
            aggregator=f.integer("aggregator", 0, MAX_CLIENTS - 1),
            inputs=tuple(_partial(item) for item in f.objects("inputs")),
            attempt=f.integer("attempt", 0, 1_000_000),
            in_s3=f.boolean("in_s3"),
        )

    def check(self, manifest: RoundManifest) -> None:
        """Raise InvalidContract where the job asks for an aggregator that the manifest's tree does not have."""
        tree = tree_of(manifest)
        what = f"Job for aggregator {self.aggregator} on level {self.level} of round {self.round_id}"
        if self.level > tree.root or self.aggregator >= tree.widths[self.level]:
            raise InvalidContract(f"{what}: the round's levels have {', '.join(map(str, tree.widths))} aggregators.")
        expected = len(tree.inputs(self.level, self.aggregator)) if self.level else 0
        if len(self.inputs) != expected:
            raise InvalidContract(f"{what}: {len(self.inputs)} partial sums to add up, expected {expected}.")


def _partial(f: Fields) -> Partial:
    found = Partial(f.optional_text("etag"), f.optional_text("segment"))
    if (found.etag is None) == (found.segment is None):
        raise InvalidContract(f"{f.what}: expected either an etag or a segment.")
    return found


def parse_job(text: str | bytes) -> ShardJob | TreeJob:
    """Any job: a tree's has a level.

    Raises:
        InvalidContract: no job at all.
    """
    return TreeJob.from_json(text) if "level" in Fields.parse("Job", text) else ShardJob.from_json(text)
