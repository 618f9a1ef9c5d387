"""The SQS messages of a round: jobs for the workers, and the workers' results.

A shard job and its result belong to grads-sharding; an aggregator job and its result belong to the trees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from lambdas.protocol.documents import Document, parse_object
from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.fields import RoundId, Sha256, ShardIndex, Size, integer, one_of
from lambdas.protocol.limits import MAX_CLIENTS
from lambdas.protocol.manifest import Exclusion, RoundManifest
from lambdas.protocol.tree import MAX_LEVELS, tree_of

Level = Annotated[int, integer(0, MAX_LEVELS - 1)]
AggregatorIndex = Annotated[int, integer(0, MAX_CLIENTS - 1)]
_Counter = Annotated[int, integer(0, 1_000_000)]

SHARD_STATUSES = ("done", "failed", "retrying")
AGGREGATOR_STATUSES = (*SHARD_STATUSES, "missing")


@dataclass(frozen=True)
class ShardJob(Document):
    """The message that asks a worker to average one shard. The manifest describes the shard.

    Attributes:
        attempt: 0 when the job is first queued, more when it is queued again. A worker that sees more than 0, or a
            redelivery, first checks whether the shard is stored already.
    """

    WHAT = "Shard job"

    round_id: RoundId
    manifest_sha256: Sha256
    shard: ShardIndex
    attempt: _Counter = 0


@dataclass(frozen=True)
class ShardStats:
    """What one job took: bytes, seconds, MiB and counts."""

    bytes_read: Size = 0
    bytes_written: Size = 0
    read_s: float = 0.0
    compute_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0
    gets: Size = 0
    puts: Size = 0
    retries: Size = 0


@dataclass(frozen=True, kw_only=True)
class JobResult(Document):
    """What the results of all kinds of jobs have in common. A worker sends one at the end of every delivery of a job.

    Attributes:
        status: `done`; `failed`: no delivery of this job can succeed (bad update); `retrying`: the queue delivers the
            job again.
        etag, sha256: of the written part or object; part 1 includes the file header.
        error_kind: class name of the error.
        error: what went wrong, a sentence.
        client: the client at fault, where there is one.
        bad: with `failed`, the clients whose updates cannot be averaged, as far as this worker has seen.
        receive_count: how many times SQS has delivered the job.
        worker: the function name and request id, or the host and process, that ran the job.
        memory_mb: the function's memory; 0 outside Lambda.
    """

    round_id: RoundId
    manifest_sha256: Sha256
    status: Annotated[str, one_of(SHARD_STATUSES)]
    etag: str | None = None
    sha256: Sha256 | None = None
    error_kind: str | None = None
    error: str | None = None
    client: str | None = None
    bad: tuple[Exclusion, ...] = ()
    receive_count: Annotated[int, integer(1, 1_000_000)] = 1
    worker: str = ""
    memory_mb: _Counter = 0
    stats: ShardStats = field(default_factory=ShardStats)

    @property
    def is_in_s3(self) -> bool:
        """Whether the output of a job with status `done` is in S3, where it can be found without this message."""
        return True

    @property
    def job_name(self) -> dict[str, int]:
        """Which job of its round this is the result of, as a report shows it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ShardResult(JobResult):
    """The result of a shard job.

    Attributes:
        norms: per participant the sum of the squares of its floating-point values in this shard, float64,
            little-endian, in base64; None where they are in S3 (the manifest's `norms`), or not known.
    """

    WHAT = "Shard result"

    shard: ShardIndex
    norms: str | None = None

    @property
    def job_name(self) -> dict[str, int]:
        return {"shard": self.shard}


@dataclass(frozen=True, kw_only=True)
class AggregatorResult(JobResult):
    """The result of an aggregator's job in a tree.

    Attributes:
        status: also `missing`: the aggregator's inputs cannot be read where it ran.
        segment: the shared memory that holds the partial sum; None where it is in S3.
        missing: the aggregators of the level below whose partial sums this one cannot read.
    """

    WHAT = "Aggregator result"

    status: Annotated[str, one_of(AGGREGATOR_STATUSES)]
    level: Level
    aggregator: AggregatorIndex
    segment: str | None = None
    missing: tuple[int, ...] = ()

    @property
    def job_name(self) -> dict[str, int]:
        return {"level": self.level, "aggregator": self.aggregator}

    @property
    def is_in_s3(self) -> bool:
        return self.segment is None


def parse_result(text: str | bytes) -> ShardResult | AggregatorResult:
    """Parse the result of any kind of job; an aggregator's has a level.

    Raises:
        InvalidContract: the message is not a result.
    """
    value = parse_object("Result", text)
    return AggregatorResult.from_object(value) if "level" in value else ShardResult.from_object(value)


@dataclass(frozen=True)
class Partial:
    """Where one input of an aggregator is: an object, pinned by its ETag, or a segment of shared memory, by name."""

    etag: str | None = None
    segment: str | None = None


@dataclass(frozen=True)
class AggregatorJob(Document):
    """The message that asks a worker to run one aggregator of a tree.

    Attributes:
        inputs: the partial sums of the level below, in order; empty on level 0, whose updates the manifest names.
        attempt: see `ShardJob`.
        in_s3: store the partial sum in S3 even where shared memory is available: a worker elsewhere needs it.
    """

    WHAT = "Aggregator job"

    round_id: RoundId
    manifest_sha256: Sha256
    level: Level
    aggregator: AggregatorIndex
    inputs: tuple[Partial, ...] = ()
    attempt: _Counter = 0
    in_s3: bool = False

    @classmethod
    def from_object(cls, value: dict[str, Any]) -> Self:
        job = super().from_object(value)
        for i, partial in enumerate(job.inputs):
            if (partial.etag is None) == (partial.segment is None):
                raise InvalidContract(f"{cls.WHAT}: inputs[{i}]: expected either an etag or a segment.")
        return job

    def check(self, manifest: RoundManifest) -> None:
        """Raise InvalidContract where the job asks for an aggregator that the manifest's tree does not have."""
        tree = tree_of(manifest)
        what = f"Job for aggregator {self.aggregator} on level {self.level} of round {self.round_id}"
        if self.level > tree.root or self.aggregator >= tree.widths[self.level]:
            raise InvalidContract(f"{what}: the round's levels have {', '.join(map(str, tree.widths))} aggregators.")
        expected = len(tree.inputs(self.level, self.aggregator)) if self.level else 0
        if len(self.inputs) != expected:
            raise InvalidContract(f"{what}: {len(self.inputs)} partial sums to add up, expected {expected}.")


def parse_job(text: str | bytes) -> ShardJob | AggregatorJob:
    """Parse any kind of job; an aggregator's has a level.

    Raises:
        InvalidContract: the message is not a job.
    """
    value = parse_object("Job", text)
    return AggregatorJob.from_object(value) if "level" in value else ShardJob.from_object(value)


Job = ShardJob | AggregatorJob
Result = ShardResult | AggregatorResult
