"""Connections: every record size, every way an answer can end, certificates that are not trusted."""

from __future__ import annotations

import http.client
import random
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from lambdas.storage import connections
from lambdas.storage.connections import Body, ConnectionPool

DATA = random.Random(5).randbytes(1_000_003)
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command for a certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{path}/key.pem", "-out", f"{path}/cert.pem"]
    subprocess.run(command, check=True, capture_output=True)
    return str(path)


class TlsServer:
    """Passes each connection that a client opens to `talk`."""

    def __init__(self, certificate: str, talk: Callable[[ssl.SSLSocket], None]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(f"{certificate}/cert.pem", f"{certificate}/key.pem")
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.errors: list[Exception] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    self._talk(connection)
            except OSError as error:
                self.errors.append(error)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def serve(certificate, monkeypatch) -> Iterator[Callable[..., TlsServer]]:
    monkeypatch.setenv("AWS_CA_BUNDLE", f"{certificate}/cert.pem")
    connections.tls_context.cache_clear()
    servers: list[TlsServer] = []

    def start(talk: Callable[[ssl.SSLSocket], None]) -> TlsServer:
        servers.append(TlsServer(certificate, talk))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
    connections.tls_context.cache_clear()


def read_request(connection: ssl.SSLSocket) -> bytes:
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        piece = connection.recv(65536)
        if not piece:
            return b""
        request += piece
    return request


def keep_alive(record: int) -> Callable[[ssl.SSLSocket], None]:
    """Answers every request with DATA, in TLS records of `record` bytes."""

    def talk(connection: ssl.SSLSocket) -> None:
        while read_request(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA))
            for at in range(0, len(DATA), record):
                connection.sendall(DATA[at : at + record])

    return talk


def get(connection, step: int = 100_000) -> bytes:
    connection.request("GET", "/x")
    response = connection.getresponse()
    left = response.length or 0
    body = Body(connection, response)
    out = bytearray()
    while left:
        piece = bytearray(min(step, left))
        count = body.readinto(memoryview(piece))
        if not count:
            break
        out += piece[:count]
        left -= count
    body.close()
    return bytes(out)


@pytest.mark.parametrize("record", [777, 16384, 100_000])
@pytest.mark.parametrize("step", [1000, 262_144])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_bytes_arrive_and_the_connection_is_used_again(serve, record, step, version) -> None:
    server = serve(keep_alive(record))
    connections.tls_context().maximum_version = version
    pool = ConnectionPool(5.0, 4)
    connection = pool.connect("https", "127.0.0.1", server.port)
    for _ in range(2):
        assert get(connection, step) == DATA
        pool.release(connection)
        assert pool.take() is connection
    connection.close()
    assert server.errors == []


def test_an_answer_that_ends_the_connection_is_read_to_its_end(serve) -> None:
    def talk(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA)

    pool = ConnectionPool(5.0, 4)
    connection = pool.connect("https", "127.0.0.1", serve(talk).port)
    assert get(connection) == DATA
    connection.close()


@pytest.mark.parametrize("politely", [True, False])
def test_a_connection_that_ends_in_mid_body_is_noticed(serve, politely) -> None:
    def talk(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")
        if politely:
            connection.unwrap()
        else:
            connection.shutdown(socket.SHUT_RDWR)

    pool = ConnectionPool(5.0, 4)
    connection = pool.connect("https", "127.0.0.1", serve(talk).port)
    connection.request("GET", "/x")
    body = Body(connection, connection.getresponse())
    view = memoryview(bytearray(1000))
    got = 0
    try:
        while count := body.readinto(view[got:]):
            got += count
    except OSError:
        pass
    assert bytes(view[:got]) == b"short"
    connection.close()


def test_a_server_that_falls_silent_runs_into_the_timeout(serve) -> None:
    release = threading.Event()

    def talk(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        release.wait(5)

    pool = ConnectionPool(0.2, 4)
    connection = pool.connect("https", "127.0.0.1", serve(talk).port)
    connection.request("GET", "/x")
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    release.set()


def test_a_certificate_that_nobody_trusts_is_refused(serve, monkeypatch) -> None:
    server = serve(keep_alive(16384))
    monkeypatch.delenv("AWS_CA_BUNDLE")
    connections.tls_context.cache_clear()
    with pytest.raises(ssl.SSLCertVerificationError):
        ConnectionPool(5.0, 4).connect("https", "127.0.0.1", server.port)


def test_a_certificate_of_another_host_is_refused(serve) -> None:
    server = serve(keep_alive(16384))
    with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
        ConnectionPool(5.0, 4).connect("https", "localhost", server.port)


def test_a_closed_connection_never_reopens_by_itself(serve) -> None:
    pool = ConnectionPool(5.0, 4)
    connection = pool.connect("https", "127.0.0.1", serve(keep_alive(16384)).port)
    connection.close()
    with pytest.raises(http.client.NotConnected):
        connection.request("GET", "/x")


def test_what_the_kernel_holds_does_not_grow_with_the_connections() -> None:
    for at_once in (1, 4, 20, 64):
        pool = ConnectionPool(5.0, at_once)
        assert pool._window * at_once <= connections.WINDOW_BYTES


@pytest.mark.parametrize("length", [0, 1, 5000, 200_000])
def test_a_body_that_comes_together_with_its_head_is_read_whole(serve, length) -> None:
    def talk(connection: ssl.SSLSocket) -> None:
        for _ in range(2):
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + DATA[:length])

    pool = ConnectionPool(5.0, 4)
    connection = pool.connect("https", "127.0.0.1", serve(talk).port)
    assert get(connection, 777) == DATA[:length]
    assert get(connection) == DATA[:length]
    connection.close()
