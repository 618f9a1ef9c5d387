"""This project's worker with other readers of updates, which were measured and not adopted.

    boto3       a get_object per range, and readinto of its body
    urllib3     a presigned GET through the connection pool that boto3 itself uses
    http.client a presigned GET through the standard library's HTTPS connection

BENCH_READER names the reader. Each reads all clients' ranges at once, as the worker does, without its
retries and checks.
"""

from __future__ import annotations

import http.client
import os
import urllib.parse
from typing import Any

import urllib3

import lambdas.shard_average as worker
from lambdas.protocol.manifest import Participant
from lambdas.storage.bucket import Bucket
from lambdas.storage.connections import tls_context
from lambdas.storage.updates import ReadCounts


class OtherReader:
    """Replaces lambdas.storage.updates.UpdateReader."""

    def __init__(self, bucket: Bucket, *, at_once: int) -> None:
        self._s3: Any = bucket.s3
        self._bucket = bucket.name
        self._pool = urllib3.PoolManager(maxsize=at_once, ssl_context=tls_context())
        self.counts = ReadCounts()

    def open(self, participant: Participant, start: int, stop: int) -> OtherStream:
        """The bytes start <= b < stop of a participant's data section."""
        byte_range = f"bytes={participant.data_offset + start}-{participant.data_offset + stop - 1}"
        where = {"Bucket": self._bucket, "Key": participant.key, "Range": byte_range, "IfMatch": participant.etag}
        self.counts.gets += 1
        self.counts.bytes_read += stop - start
        if os.environ["BENCH_READER"] == "boto3":
            return OtherStream(self._s3.get_object(**where)["Body"])
        url = self._s3.generate_presigned_url("get_object", Params=where)
        headers = {"Range": byte_range, "If-Match": participant.etag}
        if os.environ["BENCH_READER"] == "urllib3":
            return OtherStream(self._pool.request("GET", url, headers=headers, preload_content=False))
        parts = urllib.parse.urlsplit(url)
        connection = http.client.HTTPSConnection(parts.netloc, timeout=20, context=tls_context())
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        return OtherStream(connection)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()


class OtherStream:
    """The body of a response, which is received on the first read."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def readinto(self, view: memoryview) -> None:
        """Fill `view`."""
        if isinstance(self._source, http.client.HTTPSConnection):
            self._source = self._source.getresponse()
        while view:
            count = self._source.readinto(view)
            assert count, "the response ended early"
            view = view[count:]

    def close(self) -> None:
        """Close the connection."""
        self._source.close()


worker.UpdateReader = OtherReader  # type: ignore[assignment,misc]
handler = worker.handler
