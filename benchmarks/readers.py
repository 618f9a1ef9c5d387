"""Other ways to read the updates, which were measured and not kept: the worker with another reader inside.

    boto3       a get_object per range and the body's readinto
    urllib3     a presigned GET through the connection pool that boto3 itself uses
    http.client a presigned GET through the standard library's HTTPS connection

BENCH_READER names one. All read all clients' ranges at once, as the worker does, without its retries and checks.
"""

from __future__ import annotations

import http.client
import os
import urllib.parse
from typing import Any

import urllib3

import lambdas.shard_average as worker
from lambdas.protocol.manifest import Participant
from lambdas.storage.connections import tls_context
from lambdas.storage.updates import ReadCounts


class OtherReader:
    """Stands in for lambdas.updates.UpdateReader."""

    def __init__(self, s3: Any, bucket: str, *, at_once: int) -> None:
        self._s3, self._bucket = s3, bucket
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
        """Close what is idle."""
        self._pool.clear()


class OtherStream:
    """The body of an answer, which is awaited on the first read."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def readinto(self, view: memoryview) -> None:
        """Fill `view`."""
        if isinstance(self._source, http.client.HTTPSConnection):
            self._source = self._source.getresponse()
        while view:
            count = self._source.readinto(view)
            assert count, "the answer ended early"
            view = view[count:]

    def close(self) -> None:
        """Let go of the connection."""
        self._source.close()


worker.UpdateReader = OtherReader  # type: ignore[assignment,misc]
handler = worker.handler
