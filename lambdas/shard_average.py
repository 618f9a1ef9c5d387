"""The Lambda function of grads-sharding: each job averages one shard and stores it in S3. Lambda calls `handler`."""

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
from lambdas.storage.shards import ShardSink, find_shard
from lambdas.storage.updates import UpdateReader
from lambdas.worker import Done, Stopwatch, Worker, handler_for


@dataclass
class ShardWorker(Worker[ShardJob, ShardResult]):
    """Runs shard jobs."""

    def parse(self, body: str) -> ShardJob:
        return ShardJob.from_bytes(body)

    def begin(self, job: ShardJob) -> tuple[str, ShardResult]:
        what = f"Averaging shard {job.shard} of round {job.round_id}"
        return what, ShardResult(
            round_id=job.round_id, manifest_sha256=job.manifest_sha256, shard=job.shard, status="done"
        )

    def do(self, job: ShardJob, result: ShardResult) -> ShardResult:
        stopwatch = Stopwatch()
        manifest = self.manifest_of(job)
        if job.shard >= manifest.shards or manifest.topology != GRADS_SHARDING:
            raise InvalidContract(
                f"Job for shard {job.shard} of round {job.round_id}: the round is averaged by {manifest.topology} "
                f"and has {manifest.shards} shards."
            )
        reader = UpdateReader(self.bucket, at_once=min(len(manifest.participants), self.pacing.max_streams))
        found = find_shard(self.bucket, manifest, job.shard) if self.may_be_done(job, result.receive_count) else None
        if found is not None:
            done = Done(found)
        else:
            done, norms = self._average(manifest, job.shard, reader)
            result = replace(result, norms=norms)
        return replace(
            result, etag=done.written.etag, sha256=done.written.sha256, stats=stopwatch.stats(reader.counts, done)
        )

    def _average(self, manifest: RoundManifest, shard: int, reader: UpdateReader) -> tuple[Done, str | None]:
        """Average and store one shard; also returns the norms for the result message, where the manifest asks so."""
        sink = ShardSink(self.bucket, manifest, shard)
        try:
            squares = average_shard(manifest, shard, reader.open, sink.write, self.pacing)
            began = time.perf_counter()
            norms = squares.astype("<f8").tobytes()
            if manifest.norms == "objects":
                # Before the shard, so that whoever finds the shard can read them.
                self._put_norms(manifest, shard, norms)
            written = sink.finish()
            write_s = time.perf_counter() - began
        finally:
            sink.close()
            reader.close()
        if manifest.norms == "objects":
            return Done(written, puts=2, write_s=write_s), None
        return Done(written, puts=1, write_s=write_s), base64.b64encode(norms).decode()

    def _put_norms(self, manifest: RoundManifest, shard: int, norms: bytes) -> None:
        key = norms_key(manifest.round_id, shard, manifest.shards, manifest.revision)
        try:
            self.bucket.s3.put_object(Bucket=self.bucket.name, Key=key, Body=norms)
        except (ClientError, BotoCoreError) as error:
            raise StorageUnavailable(f"Storing {key}: {error}") from error


handler = handler_for(ShardWorker, __name__)
