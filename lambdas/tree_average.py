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


@dataclass
class AggregatorWorker(Worker[AggregatorJob, AggregatorResult]):
    """Runs the jobs of a tree's aggregators.

    Attributes:
        shared: this machine's shared memory, which contains LIFL's partial sums; None on Lambda, which has none.
    """

    shared: SharedBlocks | None = None

    def parse(self, body: str) -> AggregatorJob:
        return AggregatorJob.from_bytes(body)

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
        manifest = self.manifest_of(job)
        job.check(manifest)
        place = Place(manifest, job.manifest_sha256, job.level, job.aggregator)
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
        place, in_s3 = task.place, task.job.in_s3
        found = find_partial(self.bucket, place) if task.look else None
        if found is not None:
            return Done(found)
        block = None
        if self.shared is not None and place.manifest.topology == LIFL:
            block = whole_block(self.shared, place)  # An earlier delivery may have left it.
            if block is None and not in_s3:
                block = self._fill_shared(task, self.shared)
            if block is not None and not in_s3:
                return Done(Written("", None, len(block)), self.shared.full_name(place.segment))
        if block is None:
            block = zeros(place.nbytes)
            self._fill(task, block)
        began = time.perf_counter()
        written = store_partial(self.bucket, place, block)
        return Done(written, puts=1, write_s=time.perf_counter() - began)

    def _fill_shared(self, task: _Task, shared: SharedBlocks) -> memoryview | None:
        """Add up the inputs in shared memory; None if this machine has not enough."""
        place = task.place
        block = shared.create(place.segment, place.nbytes, task.job.round_id)
        if block is None:
            return None
        try:
            self._fill(task, block[: place.nbytes])
        except BaseException:
            shared.drop(place.segment)
            raise
        return block[: place.nbytes]

    def _fill(self, task: _Task, block: memoryview) -> None:
        """Write a partial sum into zeroed memory."""
        header = task.place.header
        self._add_up(task, as_float64(block, len(header)))
        # The header's length is written last: a block in shared memory with a whole header is complete.
        block[8 : len(header)] = header[8:]
        block[:8] = header[:8]

    def _add_up(self, task: _Task, sums: Float64) -> None:
        if task.place.level == 0:
            add_up(task.inputs, sums, task.reader.open, self.pacing)
            return
        try:
            add_up(task.inputs, sums, opener(task.place, task.job.inputs, self.shared, task.reader.open), self.pacing)
        except UpdateChanged as error:
            # Partial sums were replaced or deleted while their round runs; the coordinator has them recomputed.
            gone = tuple(int(e.client or 0) for e in error.each)
            named = ", ".join(map(str, gone))
            raise PartialsMissing(
                f"partial sums {named} of level {task.place.level - 1} are no longer in S3", gone
            ) from error


handler = handler_for(AggregatorWorker, __name__)
