"""A minimal streaming handler, for benchmarks.worker to compare this project's worker with.

It requests all clients' ranges at once with http.client and presigned URLs, reads them in turn piece by piece, and adds
them up in float64 with numpy. It leaves out what the worker does beyond averaging: norms, the check for NaN, SHA-256,
retries, checks of S3's responses, the coordinator's record and the result message. Its time shows how fast the machine
is at this kind of work.
"""

from __future__ import annotations

import http.client
import os
import tempfile
import urllib.parse
from typing import Any

import boto3
import numpy as np
from botocore.config import Config

from lambdas.protocol.keys import manifest_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import ShardJob
from lambdas.storage.connections import tls_context

_PIECE = 256 * 1024  # values; 64 Ki took the same time, 16 Ki 1.5 times as much

_s3 = boto3.client("s3", config=Config(signature_version="s3v4"))


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Average the shard of the job in `event`; the updates must be float32 throughout."""
    bucket, job = os.environ["FL_BUCKET"], ShardJob.from_bytes(event["Records"][0]["body"])
    stored = _s3.get_object(Bucket=bucket, Key=manifest_key(job.round_id))["Body"].read()
    manifest = RoundManifest.from_bytes(stored)
    start, stop = manifest.bounds[job.shard], manifest.bounds[job.shard + 1]
    connections = []
    for client in manifest.participants:
        url = urllib.parse.urlsplit(
            _s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": client.key})
        )
        connection = http.client.HTTPSConnection(url.netloc, context=tls_context(), timeout=20)
        first, last = client.data_offset + start * 4, client.data_offset + stop * 4 - 1
        headers = {"Range": f"bytes={first}-{last}", "If-Match": client.etag}
        connection.request("GET", f"{url.path}?{url.query}", headers=headers)
        connections.append((connection, float(client.num_examples)))
    bodies = [(connection.getresponse(), weight) for connection, weight in connections]
    raw = memoryview(bytearray(_PIECE * 4))
    sums, scratch = np.empty(_PIECE), np.empty(_PIECE)
    with tempfile.TemporaryFile() as out:
        for at in range(start, stop, _PIECE):
            count = min(_PIECE, stop - at)
            total, values = sums[:count], scratch[:count]
            total[:] = 0.0
            for body, weight in bodies:
                rest = raw[: count * 4]
                while rest:
                    rest = rest[body.readinto(rest) :]
                values[:] = np.frombuffer(raw[: count * 4], dtype="<f4")
                values *= weight
                total += values
            total /= manifest.total_examples
            out.write(total.astype("<f4").data)
        out.seek(0)
        _s3.put_object(Bucket=bucket, Key=f"rounds/{job.round_id}/plain-{job.shard}", Body=out)
    return {"clients": len(bodies)}
