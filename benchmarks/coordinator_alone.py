"""Measures the coordinator alone: pinning, planning and queueing a round of 10,000 clients and 1,000 shards.

    python -m benchmarks.coordinator_alone

S3 and SQS are in memory and answer at once, so the time and memory are the coordinator's own. Its calls are counted.
The tensor table is VGG-16's.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import json
import platform
import resource
import threading
import time
from typing import Any

import numpy as np
from botocore.exceptions import ClientError

from lambdas.protocol.keys import update_key
from lambdas.protocol.safetensors import NUM_EXAMPLES, serialize_header
from lambdas.protocol.tensor_table import TensorSpec, TensorTable
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.rounds.manifest import freeze_round
from orchestrator.rounds.pin import list_updates, pin_updates
from orchestrator.rounds.queues import queue_jobs
from orchestrator.rounds.request import RoundRecord, RoundRequest

# Configuration D of Simonyan and Zisserman (arXiv:1409.1556) as torchvision stores it, with 10 classes.
_VGG16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


def vgg16() -> TensorTable:
    """32 float32 tensors, 134,301,514 values."""
    specs, channels = [], 3
    for i, out in enumerate(_VGG16):
        specs += [TensorSpec(f"features.{i}.weight", "F32", (out, channels, 3, 3))]
        specs += [TensorSpec(f"features.{i}.bias", "F32", (out,))]
        channels = out
    for i, (rows, columns) in enumerate([(4096, 25088), (4096, 4096), (10, 4096)]):
        specs += [TensorSpec(f"classifier.{i}.weight", "F32", (rows, columns))]
        specs += [TensorSpec(f"classifier.{i}.bias", "F32", (rows,))]
    return TensorTable(tuple(sorted(specs, key=lambda t: t.name)))


# LastModified of every object.
_STORED = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class MemoryAws:
    """S3 and SQS in memory, with headers instead of whole updates."""

    def __init__(self, round_id: str, clients: int, table: TensorTable) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.messages = 0
        self.objects: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self._lock = threading.Lock()
        counts = np.random.default_rng(1).integers(1, 5000, clients)
        for i in range(clients):
            key = update_key(round_id, f"client-{i:05d}")
            header = serialize_header(table, {"format": "pt", NUM_EXAMPLES: str(counts[i])})
            self.objects[key] = header
            self.sizes[key] = len(header) + table.nbytes

    def _count(self, name: str) -> None:
        with self._lock:
            self.calls[name] += 1

    def get_paginator(self, _: str) -> MemoryAws:
        return self

    def paginate(self, *, Prefix: str, **_: object) -> Any:  # noqa: N803 - boto3's spelling
        keys = sorted(key for key in self.objects if key.startswith(Prefix))
        for i in range(0, len(keys), 1000):
            self._count("ListObjectsV2")
            yield {
                "Contents": [
                    {"Key": k, "ETag": '"e"', "Size": self.sizes.get(k, 0), "LastModified": _STORED}
                    for k in keys[i : i + 1000]
                ]
            }

    def get_object(self, *, Key: str, Range: str | None = None, **_: object) -> Any:  # noqa: N803
        self._count("GetObject")
        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return {"Body": io.BytesIO(self.objects[Key]), "ETag": '"e"'}

    def put_object(self, *, Key: str, Body: bytes, **_: object) -> dict[str, str]:  # noqa: N803
        self._count("PutObject")
        self.objects[Key] = Body
        return {"ETag": '"e"'}

    def create_multipart_upload(self, **_: object) -> dict[str, str]:
        self._count("CreateMultipartUpload")
        return {"UploadId": "upload"}

    def send_message_batch(self, *, Entries: list[Any], **_: object) -> dict[str, object]:  # noqa: N803
        self._count("SendMessageBatch")
        with self._lock:
            self.messages += len(Entries)
        return {}


def main() -> None:
    """Measure once and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=1_000)
    arguments = parser.parse_args()
    round_id, table = "bench", vgg16()
    aws: Any = MemoryAws(round_id, arguments.clients, table)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    bucket = Bucket(aws, "bucket")
    record = RoundRecord(RoundRequest("vgg16", round_id), time.time())
    pinned = pin_updates(bucket, record.request, list_updates(bucket, round_id))
    pinning = time.perf_counter()
    manifest = freeze_round(bucket, record, pinned, arguments.shards)
    planned = time.perf_counter()
    queue_jobs(AwsClients(aws, aws), "queue", manifest, range(manifest.shards), attempt=0)
    ended = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
                "clients": len(manifest.participants),
                "shards": manifest.shards,
                "jobs_queued": aws.messages,
                "seconds": {
                    "list_and_pin": round(pinning - began, 2),
                    "plan_and_freeze": round(planned - pinning, 2),
                    "queue": round(ended - planned, 2),
                    "total": round(ended - began, 2),
                },
                "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
                "peak_rss_mb": round(after.ru_maxrss / 1024),
                "manifest_bytes": len(manifest.to_bytes()),
                "calls": dict(sorted(aws.calls.items())),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
