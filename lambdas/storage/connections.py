"""Kept-alive connections to S3 for many downloads that are read in turn."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Callable
from functools import cache

from botocore.httpsession import get_cert_path

# What the kernel may hold over all connections that are read in turn: it keeps the network busy while others are read
# (0.2 s at 75 MB/s), and no more, since what waits in the kernel when the last byte arrives is still to be read.
# The kernel's own tuning lets the first connections have megabytes while the last ones, which are just as urgent, wait.
WINDOW_BYTES = 16 * 1024**2
AUTOTUNED_ABOVE = 2 * 1024**2  # few connections: the kernel knows best


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

    def take(self) -> http.client.HTTPConnection | None:
        """An idle connection, None where there is none. The server may have closed it in the meantime."""
        return self._idle.pop() if self._idle else None

    def connect(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        """A new connection. Raises OSError."""
        if scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=self._timeout_s, context=tls_context()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        connection.connect()
        connection.auto_open = 0  # never again by itself: this class makes connections
        if self._window < AUTOTUNED_ABOVE and hasattr(socket, "TCP_WINDOW_CLAMP"):  # Linux
            # Neither does alone: the kernel's tuning overrides the clamp unless the buffer is set, and the window of a
            # connected socket grows to its buffer's size by the clamp only.
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, self._window)
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


class Body:
    """An answer's body of known length, read from the socket itself, past http.client's layers.

    They cost several Python calls for every TLS record (16 KiB), which is a fifth of all that reading costs.

    Args:
        connection: that `response`, with its head read and nothing of its body, came from.
    """

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.reusable = not response.will_close
        if self.reusable:
            self._read = _reader(connection.sock)
            # What came together with the head is in the response's buffer.
            self._early = memoryview(response.fp.peek()[: response.length]) if response.length else memoryview(b"")
        else:  # http.client has taken the socket from the connection
            self._read = lambda _, view: response.readinto(view)
            self._early = memoryview(b"")

    def readinto(self, view: memoryview) -> int:
        """Fill the front of `view`, which must not be longer than the rest of the body; 0 where the answer ends."""
        if self._early:
            count = min(len(view), len(self._early))
            view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        filled, wanted, read = 0, len(view), self._read
        while filled < wanted:
            try:
                count = read(wanted - filled, view[filled:])
            except OSError:
                if filled:
                    break  # what came before counts; the next call says how it ended
                raise
            if not count:
                break
            filled += count
        return filled

    def close(self) -> None:
        """Detach the response: the connection can take another request if the body was read to its end."""
        self._response.close()


def _reader(sock: socket.socket) -> Callable[[int, memoryview], int]:
    """`sock.recv_into`; of a TLS socket, the method that it calls after checks and copies of its argument."""
    if isinstance(sock, ssl.SSLSocket):
        return sock.read  # type: ignore[return-value]  # an int, where there is a buffer
    return lambda _, view: sock.recv_into(view)


@cache
def tls_context() -> ssl.SSLContext:
    """Verifies servers as boto3 does: by AWS_CA_BUNDLE where it is set, else by botocore's bundle. Made once."""
    return ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True))
