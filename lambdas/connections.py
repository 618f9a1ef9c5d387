"""HTTPS connections that read cheaply: http.client on top, TLS in memory below.

ssl.SSLSocket asks the kernel twice for every TLS record (16 KiB) and crosses several layers of Python to do so. Here
one system call fetches many records into memory and OpenSSL decrypts them from there, straight into the caller's
buffer. At 75 MB/s on a fraction of a core this is money: benchmarks/README.md has the figures.
"""

from __future__ import annotations

import http.client
import io
import os
import select
import socket
import ssl
from functools import cache
from typing import Any, cast

from botocore.httpsession import get_cert_path

# Over all connections that are read in turn: bytes that the kernel may hold for them, and bytes fetched per system
# call. The first keeps the network busy while others are read (0.1 s at 75 MB/s) and no more: what waits in the kernel
# when the last byte arrives is still to be read. Both keep memory from growing with the connections.
WINDOW_BYTES = 8 * 1024**2
AUTOTUNED_ABOVE = 2 * 1024**2  # few connections: the kernel knows best
FETCH_BYTES = 6 * 1024**2
# A TLS record's largest content, and what surrounds it (RFC 8446, section 5.2: header 5, type 1, tag 16).
_RECORD, _RECORD_OVERHEAD = 16 * 1024, 22


class ConnectionPool:
    """Kept-alive connections to one S3 endpoint. Not for several threads at once.

    Args:
        timeout_s: for connecting, and for every wait for bytes; seconds.
        at_once: how many connections will be open together.
    """

    def __init__(self, timeout_s: float, at_once: int) -> None:
        self._timeout_s = timeout_s
        self._idle: list[http.client.HTTPConnection] = []
        self._window = max(WINDOW_BYTES // at_once, 128 * 1024)
        self._fetch = memoryview(bytearray(min(max(FETCH_BYTES // at_once, 32 * 1024), 320 * 1024)))

    def take(self) -> http.client.HTTPConnection | None:
        """An idle connection, None where there is none. The server may have closed it in the meantime."""
        return self._idle.pop() if self._idle else None

    def connect(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        """A new connection. Raises OSError."""
        connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        connection.auto_open = 0  # never by itself, and so never without TLS
        if scheme == "https":
            plain = socket.create_connection((host, port or 443), timeout=self._timeout_s)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._window < AUTOTUNED_ABOVE and hasattr(socket, "TCP_WINDOW_CLAMP"):  # Linux
                    # Either alone does not do: the kernel's tuning overrides the clamp unless the buffer is set, and
                    # the window of a connected socket grows to a buffer's size by the clamp only.
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window)
                    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, self._window)
                connection.sock = TlsSocket(plain, tls_context(), host, self._fetch)
            except BaseException:
                plain.close()
                raise
        else:
            connection.connect()
        return connection

    def release(self, connection: http.client.HTTPConnection) -> None:
        """Take back a connection whose answer has been read to the end."""
        self._idle.append(connection)

    def discard(self, connection: http.client.HTTPConnection) -> None:
        """Close a connection."""
        connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self.discard(self._idle.pop())


@cache
def tls_context() -> ssl.SSLContext:
    """Verifies servers as boto3 does: by AWS_CA_BUNDLE where it is set, else by botocore's bundle. Made once."""
    return ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True))


class TlsSocket:
    """TLS over a connected socket: as much of socket.socket as http.client uses.

    Args:
        fetch: what a system call may fill; shared by all connections of a pool.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str, fetch: memoryview) -> None:
        self._plain = plain
        self._buffer = fetch
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._poll = select.poll()
        self._poll.register(plain, select.POLLIN)
        self._readers = 0
        self._closed = False
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._fetch(_RECORD)
        self._flush()

    def sendall(self, data: bytes) -> None:
        """Encrypt and send. For requests, not for bodies: everything goes through memory."""
        self._tls.write(data)
        self._flush()

    def makefile(self, mode: str) -> io.BufferedReader:
        """A reader of what the server sends; the socket stays open until it is closed, too."""
        self._readers += 1
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Close the connection, once no reader is left."""
        self._closed = True
        if not self._readers:
            self._plain.close()

    def reader_closed(self) -> None:
        """Called by a reader that `makefile` made."""
        self._readers -= 1
        if self._closed:
            self.close()

    def readinto(self, view: memoryview) -> int:
        """Decrypt what has arrived into `view`, after waiting for the network if nothing has; 0 at the end."""
        read = cast(Any, self._tls.read)
        filled, size = 0, len(view)
        # First all that the kernel has of it: to run dry and be told so by an exception, record by record, is dear.
        lacking = size + size // _RECORD * _RECORD_OVERHEAD + _RECORD - self._incoming.pending
        if lacking > 0 and self._poll.poll(0):
            self._fetch(lacking)
        while filled < size:
            try:
                count = read(size - filled, view[filled:])
            except ssl.SSLWantReadError:
                if filled:
                    break
                self._fetch(size)
                continue
            except ssl.SSLEOFError:
                if filled:
                    break  # what came before the end; the next call says how it ended
                raise
            if not count:
                break
            filled += count
        return filled

    def _fetch(self, wanted: int) -> None:
        self._flush()
        count = self._plain.recv_into(self._buffer[: max(wanted, _RECORD)])
        if count:
            self._incoming.write(self._buffer[:count])
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())


class _Reader(io.RawIOBase):
    def __init__(self, sock: TlsSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.readinto(memoryview(buffer).cast("B"))

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._sock.reader_closed()
