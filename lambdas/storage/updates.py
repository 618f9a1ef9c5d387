"""Byte-range streams of pinned updates, read from the sockets into the caller's buffer.

boto3's response body copies every byte through several layers of Python objects. Here boto3 only signs (a presigned GET
per range), http.client sends the request and parses the response's head, and lambdas.storage.connections reads the
body. Retries are bounded, and resume a broken stream at the byte it reached.
"""

from __future__ import annotations

import http.client
import logging
import random
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from lambdas.protocol.errors import InvalidUpdate, StorageUnavailable, UpdateChanged
from lambdas.protocol.manifest import Participant
from lambdas.storage.bucket import Bucket
from lambdas.storage.connections import Body, ConnectionPool

log = logging.getLogger(__name__)

# Responses that are retried: throttling and server faults (S3 API reference, "Error responses").
_RETRYABLE = {408, 429, 500, 502, 503, 504}
_RETRYABLE_CODES = {"RequestTimeout"}  # its status is 400
_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class Retry:
    """Limits of retries: at most `attempts` without one byte of progress, then StorageUnavailable. Times in seconds."""

    attempts: int = 5
    base_s: float = 0.2
    cap_s: float = 5.0
    timeout_s: float = 20.0


@dataclass
class ReadCounts:
    """Requests, retries, bytes and seconds of reading so far."""

    gets: int = 0
    retries: int = 0
    bytes_read: int = 0
    seconds: float = 0.0


class UpdateReader:
    """Opens byte ranges of pinned updates over connections that are kept alive.

    Args:
        bucket: its boto3 client signs the requests, with Signature V4.
        at_once: how many ranges are open at the same time; it determines the size of the receive buffers.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        at_once: int,
        retry: Retry = Retry(),
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._bucket = bucket
        self._retry = retry
        self._sleep = sleep
        self.pool = ConnectionPool(retry.timeout_s, at_once)
        self.counts = ReadCounts()

    def open(self, participant: Participant, start: int, stop: int) -> RangeStream:
        """Request the bytes start <= b < stop of the participant's data section, without waiting for the response."""
        return RangeStream(self, participant, participant.data_offset + start, participant.data_offset + stop)

    def close(self) -> None:
        """Close the idle connections."""
        self.pool.close()

    # -- used by RangeStream --

    def request(self, participant: Participant, start: int, stop: int) -> Exchange:
        """Send GET for the bytes start <= b < stop of the object, on an idle connection or a new one."""
        headers = {"Range": f"bytes={start}-{stop - 1}", "If-Match": participant.etag}
        url = urllib.parse.urlsplit(
            self._bucket.s3.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket.name,
                    "Key": participant.key,
                    "Range": headers["Range"],
                    "IfMatch": headers["If-Match"],
                },
                ExpiresIn=3600,
            )
        )
        assert url.hostname
        while True:
            connection = self.pool.take()
            reused = connection is not None
            if connection is None:
                connection = self.pool.connect(url.scheme, url.hostname, url.port)
            try:
                connection.request("GET", f"{url.path}?{url.query}", headers={"Host": url.netloc, **headers})
            except (OSError, http.client.HTTPException):
                connection.close()
                if reused:  # the server closed it while it was idle
                    continue
                raise
            return Exchange(connection, reused)

    def backoff(self, failures: int, cause: str, what: str) -> None:
        """Sleep before the next attempt, or raise StorageUnavailable after the last one."""
        if failures >= self._retry.attempts:
            raise StorageUnavailable(f"Reading {what}: {failures} consecutive attempts failed, the last with: {cause}.")
        self.counts.retries += 1
        # "Full jitter" (AWS Architecture Blog, "Exponential Backoff And Jitter").
        delay = random.uniform(0, min(self._retry.cap_s, self._retry.base_s * 2**failures))
        log.warning("Reading %s: %s; attempt %d in %.1f s", what, cause, failures + 1, delay)
        self._sleep(delay)


@dataclass
class Exchange:
    """A request that was sent.

    Attributes:
        reused: the connection has served another request before, so the server may have closed it in the meantime.
        body: None until the response's head has been read and checked.
    """

    connection: http.client.HTTPConnection
    reused: bool
    body: Body | None = None


class RangeStream:
    """A byte range of one pinned update. A read either fills the whole buffer or raises."""

    def __init__(self, reader: UpdateReader, participant: Participant, start: int, stop: int) -> None:
        self._reader = reader
        self._participant = participant
        self._position = start
        self._stop = stop
        self._exchange: Exchange | None = None
        self._failures = 0
        if start < stop:
            try:
                self._exchange = reader.request(participant, start, stop)
            except (OSError, http.client.HTTPException) as error:
                self._failed(error)

    @property
    def _what(self) -> str:
        return f"{self._participant.key} (client {self._participant.client}) from byte {self._position}"

    def readinto(self, view: memoryview) -> None:
        """Fill `view` with the next bytes.

        Raises:
            UpdateChanged: the object is no longer the pinned one (412) or is gone (404).
            InvalidUpdate: the response is not the requested range.
            StorageUnavailable: bounded retries are used up.
        """
        began = time.perf_counter()
        try:
            while view:
                try:
                    count = self._body().readinto(view)
                    if count == 0:
                        raise http.client.IncompleteRead(b"", self._stop - self._position)
                except (OSError, http.client.HTTPException) as error:
                    self._failed(error)
                    continue
                self._position += count
                self._failures = 0
                self._reader.counts.bytes_read += count
                view = view[count:]
        finally:
            self._reader.counts.seconds += time.perf_counter() - began

    def close(self) -> None:
        """Return the connection to the pool if everything was read, else close it."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        body = exchange.body
        if body is not None and self._position == self._stop and body.reusable:
            body.close()
            self._reader.pool.release(exchange.connection)
        else:
            exchange.connection.close()

    def _body(self) -> Body:
        if self._exchange is None:
            self._exchange = self._reader.request(self._participant, self._position, self._stop)
        if self._exchange.body is None:
            response = self._exchange.connection.getresponse()
            self._reader.counts.gets += 1
            if response.status != 206:
                self._refused(response)
            self._check_range(response)
            self._exchange.body = Body(self._exchange.connection, response)
        return self._exchange.body

    def _refused(self, response: http.client.HTTPResponse) -> None:
        status, body = response.status, response.read(4096)
        match = _CODE.search(body)
        code = match.group(1).decode(errors="replace") if match else response.reason
        client = self._participant.client
        if status in (404, 412):
            happened = "was replaced" if status == 412 else "was deleted"
            raise UpdateChanged(
                f"client {client}: its update {self._participant.key} {happened} after the round pinned it "
                f"({status} {code})",
                client=client,
            )
        if status in (200, 416):
            raise InvalidUpdate(
                f"client {client}: S3 answered {status} for bytes {self._position}-{self._stop - 1} of "
                f"{self._participant.key}, expected 206",
                client=client,
            )
        if status in _RETRYABLE or code in _RETRYABLE_CODES:
            raise http.client.HTTPException(f"{status} {code}")
        raise StorageUnavailable(f"Reading {self._what}: S3 answered {status} {code}.")

    def _check_range(self, response: http.client.HTTPResponse) -> None:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        expected = (self._position, self._stop - 1, self._participant.size)
        found = tuple(int(group) for group in match.groups()) if match else None
        if found != expected or response.length != self._stop - self._position:
            raise InvalidUpdate(
                f"client {self._participant.client}: S3 answered Content-Range "
                f"{response.headers.get('Content-Range')!r}, Content-Length {response.length} for "
                f"bytes {expected[0]}-{expected[1]}/{expected[2]} of {self._participant.key}",
                client=self._participant.client,
            )

    def _failed(self, error: Exception) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.connection.close()
            if exchange.reused and exchange.body is None and isinstance(error, (ConnectionError, ssl.SSLError)):
                return  # not counted as a failure: S3 closed the idle connection, and the next read uses another one
        self._failures += 1
        self._reader.backoff(self._failures, f"{type(error).__name__}: {error}", self._what)
