"""The SQS messages of a round: jobs and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lambdas.protocol.documents import SCHEMA, Fields, canonical_json
from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.limits import MAX_CLIENTS, MAX_INT, MAX_SHARDS
from lambdas.protocol.manifest import Exclusion, RoundManifest
from lambdas.protocol.tree import tree_of


@dataclass(frozen=True)
class ShardJob:
    """The SQS message that asks a worker for one shard. It points; the manifest describes.

    Attributes:
        attempt: 0 when first queued; more when queued again. A worker that sees more than 0, or a redelivery, looks
            first whether the shard is already there.
    """

    round_id: str
    manifest_sha256: str
    shard: int
    attempt: int = 0

    def to_json(self) -> str:
        return canonical_json({"schema": SCHEMA, **asdict(self)}).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardJob:
        f = Fields.parse("Shard job", text)
        return cls(
            round_id=f.name("round_id", "round"),
            manifest_sha256=f.digest("manifest_sha256"),
            shard=f.integer("shard", 0, MAX_SHARDS - 1),
            attempt=f.integer("attempt", 0, 1_000_000),
        )


@dataclass(frozen=True)
class ShardStats:
    """What one shard took: bytes, seconds, MiB and counts."""

    bytes_read: int = 0
    bytes_written: int = 0
    read_s: float = 0.0
    compute_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0
    gets: int = 0
    puts: int = 0
    retries: int = 0


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What every result message says; a worker sends one when it is through with a job.

    Attributes:
        status: `done`; `failed`: no delivery of this job can succeed (bad update); `retrying`: the queue will
            deliver the job again.
        etag, sha256: of the written part or object (part 1 has the file header in front).
        error: what went wrong, a sentence; `client` names the client at fault where there is one.
        bad: with `failed`, the clients whose updates cannot be averaged, as far as this worker has seen.
        receive_count: how many times SQS had delivered the job.
        worker: who ran it (function name and request id, or host and process).
    """

    round_id: str
    manifest_sha256: str
    status: str
    etag: str | None = None
    sha256: str | None = None
    error_kind: str | None = None
    error: str | None = None
    client: str | None = None
    bad: tuple[Exclusion, ...] = ()
    receive_count: int = 1
    worker: str = ""
    memory_mb: int = 0
    stats: ShardStats = field(default_factory=ShardStats)

    @property
    def is_in_s3(self) -> bool:
        """Whether what a job with status `done` made is in S3, where it can be seen without this message."""
        return True

    @property
    def job_name(self) -> dict[str, int]:
        """Which job of its round this is the result of, as a report tells it."""
        raise NotImplementedError

    def to_json(self) -> str:
        return canonical_json({"schema": SCHEMA, **asdict(self)}).decode()


@dataclass(frozen=True, kw_only=True)
class ShardResult(JobResult):
    """The result of a shard job.

    Attributes:
        norms: per participant the sum of the squares of its floating-point values in this shard, float64,
            little-endian, in base64; None where they are in S3 (the manifest's `norms`), or not known.
    """

    shard: int
    norms: str | None = None

    @property
    def job_name(self) -> dict[str, int]:
        return {"shard": self.shard}

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardResult:
        return cls.from_fields(Fields.parse("Shard result", text))

    @classmethod
    def from_fields(cls, f: Fields) -> ShardResult:
        return cls(
            **_shared(f, ("done", "failed", "retrying")),
            shard=f.integer("shard", 0, MAX_SHARDS - 1),
            norms=f.optional_text("norms"),
        )


@dataclass(frozen=True, kw_only=True)
class AggregatorResult(JobResult):
    """The result of an aggregator's job in a tree.

    Attributes:
        status: also `missing`: the aggregator's inputs cannot be had where it ran.
        segment: the shared memory that holds the partial sum; None where it is in S3.
        missing: which aggregators of the level below left partial sums that this one cannot read.
    """

    level: int
    aggregator: int
    segment: str | None = None
    missing: tuple[int, ...] = ()

    @property
    def job_name(self) -> dict[str, int]:
        return {"level": self.level, "aggregator": self.aggregator}

    @property
    def is_in_s3(self) -> bool:
        return self.segment is None

    @classmethod
    def from_json(cls, text: str | bytes) -> AggregatorResult:
        return cls.from_fields(Fields.parse("Aggregator result", text))

    @classmethod
    def from_fields(cls, f: Fields) -> AggregatorResult:
        return cls(
            **_shared(f, ("done", "failed", "retrying", "missing")),
            level=f.integer("level", 0, 2),
            aggregator=f.integer("aggregator", 0, MAX_CLIENTS - 1),
            segment=f.optional_text("segment"),
            missing=f.integers("missing"),
        )


def parse_result(text: str | bytes) -> ShardResult | AggregatorResult:
    """Any result: an aggregator's has a level.

    Raises:
        InvalidContract: not a result.
    """
    f = Fields.parse("Result", text)
    return AggregatorResult.from_fields(f) if "level" in f else ShardResult.from_fields(f)


def _shared(f: Fields, statuses: Sequence[str]) -> dict[str, Any]:
    stats = f.object("stats")
    return {
        "round_id": f.name("round_id", "round"),
        "manifest_sha256": f.digest("manifest_sha256"),
        "status": f.choice("status", statuses),
        "etag": f.optional_text("etag"),
        "sha256": f.optional_digest("sha256"),
        "error_kind": f.optional_text("error_kind"),
        "error": f.optional_text("error"),
        "client": f.optional_text("client"),
        "bad": tuple(Exclusion.from_fields(e) for e in f.objects("bad")),
        "receive_count": f.integer("receive_count", 1, 1_000_000),
        "worker": f.text("worker"),
        "memory_mb": f.integer("memory_mb", 0, 1_000_000),
        "stats": ShardStats(
            bytes_read=stats.integer("bytes_read", 0, MAX_INT),
            bytes_written=stats.integer("bytes_written", 0, MAX_INT),
            read_s=stats.number("read_s"),
            compute_s=stats.number("compute_s"),
            write_s=stats.number("write_s"),
            wall_s=stats.number("wall_s"),
            cpu_s=stats.number("cpu_s"),
            peak_rss_mb=stats.number("peak_rss_mb"),
            gets=stats.integer("gets", 0, MAX_INT),
            puts=stats.integer("puts", 0, MAX_INT),
            retries=stats.integer("retries", 0, MAX_INT),
        ),
    }


@dataclass(frozen=True)
class Partial:
    """Where one input of an aggregator is: an object, pinned by its ETag, or a segment of shared memory, by name."""

    etag: str | None = None
    segment: str | None = None


@dataclass(frozen=True)
class AggregatorJob:
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
    def from_json(cls, text: str | bytes) -> AggregatorJob:
        f = Fields.parse("Aggregator job", text)
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


def parse_job(text: str | bytes) -> ShardJob | AggregatorJob:
    """Any job: a tree's has a level.

    Raises:
        InvalidContract: no job at all.
    """
    return AggregatorJob.from_json(text) if "level" in Fields.parse("Job", text) else ShardJob.from_json(text)


Job = ShardJob | AggregatorJob
Result = ShardResult | AggregatorResult
