"""The aggregators of the two trees, lambda-FL and LIFL: one tree job in, one partial sum (the root: the model) out.

An aggregator holds the complete model as float64 sums; that is what these architectures are, and what GradsSharding
does without. Reading streams as in the sharded worker, the inputs are added in order, and the root rounds once. So the
bytes follow from manifest and tree alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from lambdas.averaging.mean import Float64, add_up, write_mean
from lambdas.protocol.errors import PartialsMissing, UpdateChanged
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import ShardResult, TreeJob
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
from lambdas.worker import AnyJob, Worker, handler_for, stats_of


@dataclass
class _Done:
    """What became of a job: what is stored, the shared memory that holds it, PUTs and the seconds they took."""

    written: Written
    segment: str | None = None
    puts: int = 0
    write_s: float = 0.0


@dataclass
class TreeWorker(Worker):
    """Runs tree jobs.

    Attributes:
        shared: this machine's shared memory, in which LIFL's partial sums stay; None on Lambda, which has none.
    """

    shared: SharedBlocks | None = None

    def _parse(self, body: str) -> AnyJob:
        return TreeJob.from_json(body)

    def _begin(self, job: AnyJob) -> tuple[str, ShardResult]:
        assert isinstance(job, TreeJob)
        what = f"Adding up for aggregator {job.aggregator} on level {job.level} of round {job.round_id}"
        return what, ShardResult(
            job.round_id, job.manifest_sha256, 0, "done", level=job.level, aggregator=job.aggregator
        )

    def _do(self, job: AnyJob, result: ShardResult) -> ShardResult:
        assert isinstance(job, TreeJob)
        began, cpu_began = time.perf_counter(), time.process_time()
        manifest = self._manifest(job)
        place = Place.of(manifest, job)
        inputs = place.inputs(job.inputs)
        reader = UpdateReader(self.s3, self.bucket, at_once=min(len(inputs.participants), self.pacing.max_streams))
        look = self._may_be_done(job, result.receive_count)
        try:
            done = self._root(place, job, inputs, reader, look) if place.is_root else None
            done = done or self._partial(place, job, inputs, reader, look)
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

    def _root(self, place: Place, job: TreeJob, inputs: RoundManifest, reader: UpdateReader, look: bool) -> _Done:
        found = find_shard(self.s3, self.bucket, place.manifest, 0) if look else None
        if found is not None:
            return _Done(found)
        sums = as_float64(zeros(8 * place.manifest.table.elements), 0)
        self._add_up(place, job, inputs, sums, reader)
        sink = ShardSink(self.s3, self.bucket, place.manifest, 0)
        try:
            write_mean(place.manifest, sums, sink.write, self.pacing)
            began = time.perf_counter()
            return _Done(sink.finish(), puts=1, write_s=time.perf_counter() - began)
        finally:
            sink.close()

    def _partial(self, place: Place, job: TreeJob, inputs: RoundManifest, reader: UpdateReader, look: bool) -> _Done:
        found = find_partial(self.s3, self.bucket, place) if look else None
        if found is not None:
            return _Done(found)
        shared = self.shared if place.manifest.architecture == LIFL else None
        block = whole_block(shared, place) if shared is not None else None
        segment = shared.full_name(place.segment) if shared is not None and block is not None else None
        if block is None:
            header = place.header
            nbytes = len(header) + 8 * place.manifest.table.elements
            if shared is not None and not job.in_s3:
                block = shared.create(place.segment, nbytes, job.round_id)
                if block is not None:
                    block, segment = block[:nbytes], shared.full_name(place.segment)
            if block is None:
                block = zeros(nbytes)
            try:
                self._add_up(place, job, inputs, as_float64(block, len(header)), reader)
            except BaseException:
                if shared is not None and segment is not None:
                    shared.drop(place.segment)
                raise
            # Last of all its length: what is found in shared memory with its whole header is complete.
            block[8 : len(header)] = header[8:]
            block[:8] = header[:8]
        if segment is not None and not job.in_s3:
            return _Done(Written("", None, len(block)), segment)
        began = time.perf_counter()
        return _Done(store_partial(self.s3, self.bucket, place, block), puts=1, write_s=time.perf_counter() - began)

    def _add_up(self, place: Place, job: TreeJob, inputs: RoundManifest, sums: Float64, reader: UpdateReader) -> None:
        if place.level == 0:
            add_up(inputs, sums, reader.open, self.pacing)
            return
        try:
            add_up(inputs, sums, opener(place, job.inputs, self.shared, reader.open), self.pacing)
        except UpdateChanged as error:
            # Nobody replaces or deletes partial sums while their round runs, but somebody did: they can be made again.
            gone = tuple(int(e.client or 0) for e in error.each)
            named = ", ".join(map(str, gone))
            raise PartialsMissing(
                f"partial sums {named} of level {place.level - 1} are no longer in S3", gone
            ) from error


handler = handler_for(TreeWorker, __name__)
