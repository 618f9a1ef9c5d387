"""An HTTP server for ranges of objects, and the faulty answers that it can give."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.objects import etag_of

# Answers one request, and returns whether the connection stays open.
Answer = Callable[["_Handler", "Request"], bool]


@dataclass(frozen=True)
class Request:
    """A request, and the object that it asks for: `etag` is empty where there is none."""

    key: str
    headers: dict[str, str]
    first: int
    last: int
    body: bytes
    etag: str

    @property
    def part(self) -> bytes:
        return self.body[self.first : self.last + 1]


class RangeServer:
    """Answers GET with Range and If-Match over plain HTTP on loopback, as S3 does.

    Attributes:
        objects: by key.
        script: answers to the next requests, in their order; after them, every answer is right.
        requests: what was asked.
        connections, open, most_open: how many connections there were, are, and were at once.
    """

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = {} if objects is None else objects
        self.script: list[Answer] = []
        self.requests: list[Request] = []
        self.connections = 0
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> RangeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    owner: RangeServer


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        owner = self.server.owner
        with owner.lock:
            owner.connections += 1
            owner.open += 1
            owner.most_open = max(owner.most_open, owner.open)
        try:
            with contextlib.suppress(ConnectionError):
                while self.answer_one():
                    pass
        finally:
            with owner.lock:
                owner.open -= 1

    def answer_one(self) -> bool:
        line = self.rfile.readline().decode()
        if not line:
            return False
        headers = {}
        while text := self.rfile.readline().decode().strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        _, _, key = urllib.parse.urlsplit(line.split(" ")[1]).path.removeprefix("/").partition("/")
        owner = self.server.owner
        body = owner.objects.get(key)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", f"bytes=0-{2**63}"))
        assert found
        etag = "" if body is None else etag_of(body)
        request = Request(key, headers, int(found[1]), int(found[2]), body or b"", etag)
        with owner.lock:
            owner.requests.append(request)
            answer = owner.script.pop(0) if owner.script else serve
        return answer(self, request)

    def reply(self, status: str, body: bytes, headers: dict[str, str] | None = None) -> bool:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)
        return True


def serve(handler: _Handler, request: Request) -> bool:
    """Answer as S3 does."""
    if not request.etag:
        return error("404 Not Found", "NoSuchKey")(handler, request)
    if request.headers.get("if-match", request.etag) != request.etag:
        return error("412 Precondition Failed", "PreconditionFailed")(handler, request)
    if "range" not in request.headers:
        return handler.reply("200 OK", request.body, {"ETag": request.etag})
    if request.first >= len(request.body):
        return error("416 Range Not Satisfiable", "InvalidRange")(handler, request)
    return handler.reply("206 Partial Content", request.part, _range_headers(request))


def _range_headers(request: Request) -> dict[str, str]:
    last = request.first + len(request.part) - 1
    return {"Content-Range": f"bytes {request.first}-{last}/{len(request.body)}", "ETag": request.etag}


def error(status: str, code: str, body: bytes | None = None) -> Answer:
    """Answer with an S3 error."""
    xml = f"<Error><Code>{code}</Code></Error>".encode() if body is None else body
    return lambda handler, request: handler.reply(status, xml)


def cut(after: int) -> Answer:
    """Send the right head and the first `after` bytes of the body, and close the connection."""

    def answer(handler: _Handler, request: Request) -> bool:
        lines = ["HTTP/1.1 206 Partial Content", f"Content-Length: {len(request.part)}"]
        lines += [f"{name}: {value}" for name, value in _range_headers(request).items()]
        handler.wfile.write("\r\n".join([*lines, "", ""]).encode() + request.part[:after])
        return False

    return answer


def hang_up(handler: _Handler, request: Request) -> bool:
    """Close the connection without an answer."""
    return False


def reset(handler: _Handler, request: Request) -> bool:
    """Reset the connection without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()
    raise ConnectionResetError


def serve_and_close(handler: _Handler, request: Request) -> bool:
    """Answer as S3 does, then close the connection although the client expects to use it again."""
    serve(handler, request)
    return False


def hang(seconds: float) -> Answer:
    """Close the connection without an answer after some seconds."""

    def answer(handler: _Handler, request: Request) -> bool:
        threading.Event().wait(seconds)
        return False

    return answer


def with_headers(status: str, headers: Callable[[Request], dict[str, str]], body: bytes | None = None) -> Answer:
    """Send a status, headers and a body that the test chooses."""
    return lambda handler, request: handler.reply(
        status, request.part if body is None else body, {**_range_headers(request), **headers(request)}
    )
