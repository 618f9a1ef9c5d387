"""The aggregators of the two trees, lambda-FL and LIFL: one tree job in, one partial sum (the root: the model) out.

An aggregator holds the complete model as float64 sums; that is what these topologies are, and what GradsSharding
does without. Reading streams as in the sharded worker, the inputs are added in order, and the root rounds once. So the
bytes follow from manifest and tree alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from lambdas.averaging.mean import Float64, add_up, write_mean
from lambdas.protocol.errors import PartialsMissing, UpdateChanged
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import AggregatorJob, AggregatorResult
from lambdas.protocol.topologies import LIFL
from lambdas.storage.partials import (
    Place,
    SharedBlocks,
    as_float64,
    find_partial,
    opener,
    store_partial,
    whole_block,
    zeros,
)
from lambdas.storage.shards import ShardSink, Written, find_shard
from lambdas.storage.updates import UpdateReader
from lambdas.worker import Worker, handler_for, stats_of


@dataclass(frozen=True)
class _Task:
    """One job while it is done.

    Attributes:
        inputs: what is added up, as `add_up` takes it.
        look: whether the result may be stored already.
    """

    place: Place
    job: AggregatorJob
    inputs: RoundManifest
    reader: UpdateReader
    look: bool


@dataclass(frozen=True)
class _Block:
    """A partial sum in memory, header included; `segment` is its name where the memory is shared."""

    bytes: memoryview
    segment: str | None = None


@dataclass
class _Done:
    """What became of a job: what is stored, the shared memory that holds it, PUTs and the seconds they took."""

    written: Written
    segment: str | None = None
    puts: int = 0
    write_s: float = 0.0


@dataclass
class AggregatorWorker(Worker[AggregatorJob, AggregatorResult]):
    """Runs the jobs of a tree's aggregators.

    Attributes:
        shared: this machine's shared memory, in which LIFL's partial sums stay; None on Lambda, which has none.
    """

    shared: SharedBlocks | None = None

    def parse(self, body: str) -> AggregatorJob:
        return AggregatorJob.from_json(body)

    def begin(self, job: AggregatorJob) -> tuple[str, AggregatorResult]:
        what = f"Adding up for aggregator {job.aggregator} on level {job.level} of round {job.round_id}"
        return what, AggregatorResult(
            round_id=job.round_id,
            manifest_sha256=job.manifest_sha256,
            level=job.level,
            aggregator=job.aggregator,
            status="done",
        )

    def do(self, job: AggregatorJob, result: AggregatorResult) -> AggregatorResult:
        began, cpu_began = time.perf_counter(), time.process_time()
        place = Place.of(self.manifest_of(job), job)
        inputs = place.inputs(job.inputs)
        reader = UpdateReader(self.bucket, at_once=min(len(inputs.participants), self.pacing.max_streams))
        task = _Task(place, job, inputs, reader, self.may_be_done(job, result.receive_count))
        try:
            done = self._root(task) if place.is_root else self._partial(task)
        except PartialsMissing as error:
            return replace(
                result, status="missing", missing=error.aggregators, error_kind=type(error).__name__, error=f"{error}"
            )
        finally:
            reader.close()
        return replace(
            result,
            etag=done.written.etag or None,
            sha256=done.written.sha256,
            segment=done.segment,
            stats=stats_of(
                began, cpu_began, reader.counts,
                write_s=done.write_s, puts=done.puts, written=done.written.nbytes,
            ),
        )  # fmt: skip

    def _root(self, task: _Task) -> _Done:
        """Average the whole model and store it as the round's one shard."""
        manifest = task.place.manifest
        found = find_shard(self.bucket, manifest, 0) if task.look else None
        if found is not None:
            return _Done(found)
        sums = as_float64(zeros(8 * manifest.table.elements), 0)
        self._add_up(task, sums)
        sink = ShardSink(self.bucket, manifest, 0)
        try:
            write_mean(manifest, sums, sink.write, self.pacing)
            began = time.perf_counter()
            return _Done(sink.finish(), puts=1, write_s=time.perf_counter() - began)
        finally:
            sink.close()

    def _partial(self, task: _Task) -> _Done:
        """Make a partial sum, and leave it in shared memory or in S3."""
        found = find_partial(self.bucket, task.place) if task.look else None
        if found is not None:
            return _Done(found)
        block = self._find_block(task) or self._fill_block(task)
        if block.segment is not None and not task.job.in_s3:
            return _Done(Written("", None, len(block.bytes)), block.segment)
        began = time.perf_counter()
        written = store_partial(self.bucket, task.place, block.bytes)
        return _Done(written, puts=1, write_s=time.perf_counter() - began)

    def _shared_for(self, task: _Task) -> SharedBlocks | None:
        """The shared memory in which this job's partial sum may be; only LIFL's are kept there."""
        return self.shared if task.place.manifest.topology == LIFL else None

    def _find_block(self, task: _Task) -> _Block | None:
        """A complete partial sum in shared memory, from an earlier delivery."""
        shared = self._shared_for(task)
        block = whole_block(shared, task.place) if shared is not None else None
        return _Block(block, shared.full_name(task.place.segment)) if shared is not None and block is not None else None

    def _new_block(self, task: _Task) -> _Block:
        """Zeroed memory for a partial sum: shared where that is wanted and this machine has room, else private."""
        shared, place = self._shared_for(task), task.place
        if shared is not None and not task.job.in_s3:
            block = shared.create(place.segment, place.nbytes, task.job.round_id)
            if block is not None:
                return _Block(block[: place.nbytes], shared.full_name(place.segment))
        return _Block(zeros(place.nbytes))

    def _fill_block(self, task: _Task) -> _Block:
        """Add up the inputs in new memory."""
        block, header = self._new_block(task), task.place.header
        try:
            self._add_up(task, as_float64(block.bytes, len(header)))
        except BaseException:
            if block.segment is not None and self.shared is not None:
                self.shared.drop(task.place.segment)
            raise
        # The header's length comes last: a block in shared memory that has its whole header is complete.
        block.bytes[8 : len(header)] = header[8:]
        block.bytes[:8] = header[:8]
        return block

    def _add_up(self, task: _Task, sums: Float64) -> None:
        if task.place.level == 0:
            add_up(task.inputs, sums, task.reader.open, self.pacing)
            return
        try:
            add_up(task.inputs, sums, opener(task.place, task.job.inputs, self.shared, task.reader.open), self.pacing)
        except UpdateChanged as error:
            # Somebody has replaced or deleted partial sums while their round runs: they can be made again.
            gone = tuple(int(e.client or 0) for e in error.each)
            named = ", ".join(map(str, gone))
            raise PartialsMissing(
                f"partial sums {named} of level {task.place.level - 1} are no longer in S3", gone
            ) from error


handler = handler_for(AggregatorWorker, __name__)
