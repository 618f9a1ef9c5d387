"""Connections to S3 that are kept alive, for many downloads that are read in turn."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Callable
from functools import cache

from botocore.httpsession import get_cert_path

# Receive buffers of all connections together. They keep the network busy while another connection is read (0.2 s at
# 75 MB/s). They are not larger, because what they hold when the last byte arrives still has to be read. The kernel's
# own tuning gives megabytes to the first connections and little to the last ones.
WINDOW_BYTES = 16 * 1024**2
AUTOTUNED_ABOVE = 2 * 1024**2  # with few connections the kernel's own tuning is used


class ConnectionPool:
    """Connections to one S3 endpoint that are kept alive. Not thread-safe.

    Args:
        timeout_s: limit of connecting and of every wait for bytes, seconds.
        at_once: how many connections are open at the same time.
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
        connection.auto_open = 0  # http.client must not connect again by itself
        if self._window < AUTOTUNED_ABOVE and hasattr(socket, "TCP_WINDOW_CLAMP"):  # Linux
            # Both are needed: the kernel's tuning overrides the clamp unless the buffer is set, and the window of a
            # connected socket grows to its buffer's size only because of the clamp.
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, self._window)
        return connection

    def release(self, connection: http.client.HTTPConnection) -> None:
        """Take back a connection whose response has been read to the end."""
        self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


class Body:
    """A response's body of known length, read from the socket itself.

    http.client's own layers take several Python calls per TLS record (16 KiB), a fifth of the CPU time of reading.

    Args:
        connection: the connection of `response`, whose head has been read and whose body has not.
    """

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.reusable = not response.will_close
        if self.reusable:
            self._read = _reader(connection.sock)
            # Bytes that arrived together with the head are in the response's buffer.
            self._early = memoryview(response.fp.peek()[: response.length]) if response.length else memoryview(b"")
        else:  # http.client has taken the socket from the connection
            self._read = lambda _, view: response.readinto(view)
            self._early = memoryview(b"")

    def readinto(self, view: memoryview) -> int:
        """Read into the front of `view`, which must not be longer than the rest of the body; returns 0 at the end."""
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
                    break  # return what was read; the next call raises the error
                raise
            if not count:
                break
            filled += count
        return filled

    def close(self) -> None:
        """Detach the response: the connection can take another request if the body was read to its end."""
        self._response.close()


def _reader(sock: socket.socket) -> Callable[[int, memoryview], int]:
    """`sock.recv_into`; for a TLS socket the method behind it, without its checks."""
    if isinstance(sock, ssl.SSLSocket):
        return sock.read  # type: ignore[return-value]  # returns an int when it gets a buffer
    return lambda _, view: sock.recv_into(view)


@cache
def tls_context() -> ssl.SSLContext:
    """A context that verifies servers as boto3 does: by AWS_CA_BUNDLE if it is set, else by botocore's bundle."""
    return ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True))
