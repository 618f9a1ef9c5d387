"""The Lambda function of the two trees, lambda-FL and LIFL: each job runs one aggregator. Lambda calls `handler`.

An aggregator adds up its inputs in order and stores a partial sum; the root stores the model, which is rounded once. So
the bytes of the model depend on manifest and tree only. Unlike a shard worker, an aggregator has the sums of the whole
model in memory, as float64.
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
from lambdas.worker import Done, Stopwatch, Worker, handler_for


@dataclass(frozen=True)
class _Task:
    """One job while it runs.

    Attributes:
        inputs: the inputs in the form that `add_up` takes.
        look: whether the result may be stored already.
    """

    place: Place
    job: AggregatorJob
    inputs: RoundManifest
    reader: UpdateReader
    look: bool


@dataclass(frozen=True)
class _Block:
    """A partial sum in memory, including the header; `segment` is the name of shared memory."""

    bytes: memoryview
    segment: str | None = None


@dataclass
class AggregatorWorker(Worker[AggregatorJob, AggregatorResult]):
    """Runs the jobs of a tree's aggregators.

    Attributes:
        shared: this machine's shared memory, which contains LIFL's partial sums; None on Lambda, which has none.
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
        stopwatch = Stopwatch()
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
            stats=stopwatch.stats(reader.counts, done),
        )

    def _root(self, task: _Task) -> Done:
        """Average the whole model and store it as the round's one shard."""
        manifest = task.place.manifest
        found = find_shard(self.bucket, manifest, 0) if task.look else None
        if found is not None:
            return Done(found)
        sums = as_float64(zeros(8 * manifest.table.elements), 0)
        self._add_up(task, sums)
        sink = ShardSink(self.bucket, manifest, 0)
        try:
            write_mean(manifest, sums, sink.write, self.pacing)
            began = time.perf_counter()
            return Done(sink.finish(), puts=1, write_s=time.perf_counter() - began)
        finally:
            sink.close()

    def _partial(self, task: _Task) -> Done:
        """Make a partial sum and store it in shared memory or in S3."""
        found = find_partial(self.bucket, task.place) if task.look else None
        if found is not None:
            return Done(found)
        block = self._find_block(task) or self._fill_block(task)
        if block.segment is not None and not task.job.in_s3:
            return Done(Written("", None, len(block.bytes)), block.segment)
        began = time.perf_counter()
        written = store_partial(self.bucket, task.place, block.bytes)
        return Done(written, puts=1, write_s=time.perf_counter() - began)

    def _shared_for(self, task: _Task) -> SharedBlocks | None:
        """The shared memory for this job's partial sum; only LIFL uses it."""
        return self.shared if task.place.manifest.topology == LIFL else None

    def _find_block(self, task: _Task) -> _Block | None:
        """A complete partial sum that an earlier delivery left in shared memory."""
        shared = self._shared_for(task)
        block = whole_block(shared, task.place) if shared is not None else None
        return _Block(block, shared.full_name(task.place.segment)) if shared is not None and block is not None else None

    def _new_block(self, task: _Task) -> _Block:
        """Zeroed memory for a partial sum: shared if the topology uses it and there is enough, else private."""
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
        # The header's length is written last: a block in shared memory with a whole header is complete.
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
            # Partial sums were replaced or deleted while their round runs; the coordinator has them made again.
            gone = tuple(int(e.client or 0) for e in error.each)
            named = ", ".join(map(str, gone))
            raise PartialsMissing(
                f"partial sums {named} of level {task.place.level - 1} are no longer in S3", gone
            ) from error


handler = handler_for(AggregatorWorker, __name__)
