"""The averaging worker: one shard job in, one averaged shard in S3 and one result message out.

`handler` is what Lambda calls.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, replace

from botocore.exceptions import BotoCoreError, ClientError

from lambdas.averaging.mean import average_shard
from lambdas.protocol.errors import InvalidContract, StorageUnavailable
from lambdas.protocol.keys import norms_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import ShardJob, ShardResult
from lambdas.protocol.topologies import GRADS_SHARDING
from lambdas.storage.shards import ShardSink, Written, find_shard
from lambdas.storage.updates import UpdateReader
from lambdas.worker import Worker, handler_for, stats_of


@dataclass
class ShardWorker(Worker[ShardJob, ShardResult]):
    """Averages shards."""

    def parse(self, body: str) -> ShardJob:
        return ShardJob.from_json(body)

    def begin(self, job: ShardJob) -> tuple[str, ShardResult]:
        what = f"Averaging shard {job.shard} of round {job.round_id}"
        return what, ShardResult(
            round_id=job.round_id, manifest_sha256=job.manifest_sha256, shard=job.shard, status="done"
        )

    def do(self, job: ShardJob, result: ShardResult) -> ShardResult:
        began, cpu_began = time.perf_counter(), time.process_time()
        manifest = self.manifest_of(job)
        if job.shard >= manifest.shards or manifest.topology != GRADS_SHARDING:
            raise InvalidContract(
                f"Job for shard {job.shard} of round {job.round_id}: the round is averaged by {manifest.topology} "
                f"and has {manifest.shards} shards."
            )
        reader = UpdateReader(self.bucket, at_once=min(len(manifest.participants), self.pacing.max_streams))
        write_s, puts = 0.0, 0
        written: Written | None = None
        if self.may_be_done(job, result.receive_count):
            written = find_shard(self.bucket, manifest, job.shard)
        if written is None:
            sink = ShardSink(self.bucket, manifest, job.shard)
            try:
                squares = average_shard(manifest, job.shard, reader.open, sink.write, self.pacing)
                write_began = time.perf_counter()
                norms = squares.astype("<f8").tobytes()
                if manifest.norms == "objects":
                    # Before the shard: who sees the shard can read them.
                    self._put_norms(manifest, job.shard, norms)
                else:
                    result = replace(result, norms=base64.b64encode(norms).decode())
                written = sink.finish()
                write_s, puts = time.perf_counter() - write_began, 1 + (manifest.norms == "objects")
            finally:
                sink.close()
                reader.close()
        return replace(
            result,
            etag=written.etag,
            sha256=written.sha256,
            stats=stats_of(began, cpu_began, reader.counts, write_s=write_s, puts=puts, written=written.nbytes),
        )

    def _put_norms(self, manifest: RoundManifest, shard: int, norms: bytes) -> None:
        key = norms_key(manifest.round_id, shard, manifest.shards, manifest.revision)
        try:
            self.bucket.s3.put_object(Bucket=self.bucket.name, Key=key, Body=norms)
        except (ClientError, BotoCoreError) as error:
            raise StorageUnavailable(f"Storing {key}: {error}") from error


handler = handler_for(ShardWorker, __name__)
