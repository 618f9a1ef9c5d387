"""An HTTP proxy in front of an emulator. It replaces chosen answers: by errors, short bodies, or none at all."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field

# Gets the handler, and a function that passes the request on to the emulator. The connection is closed afterwards.
Fault = Callable[["_Handler", Callable[[], "Answer"]], None]


@dataclass(frozen=True)
class Answer:
    """An answer of the emulator."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Rule:
    """The next `times` requests with this method whose path matches get the fault."""

    method: str
    path: str
    fault: Fault
    times: int = 1


@dataclass
class FaultyProxy:
    """Passes every request on to `target`, except those that match a rule.

    Attributes:
        rules: the faults to come; the first rule that matches a request applies.
        spoiled: how many requests got a fault.
    """

    target: str
    rules: list[Rule] = field(default_factory=list)
    spoiled: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def spoil(self, method: str, path: str, fault: Fault, times: int = 1) -> None:
        """Give the next requests that match a fault."""
        self.rules.append(Rule(method, path, fault, times))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for rule in self.rules:
                if rule.times and rule.method == method and re.search(rule.path, path):
                    rule.times -= 1
                    self.spoiled += 1
                    return rule.fault
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def ask() -> Answer:
            target = urllib.parse.urlsplit(self.proxy.target)
            connection = http.client.HTTPConnection(target.netloc, timeout=30)
            with contextlib.closing(connection):
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                return Answer(response.status, response.getheaders(), response.read())

        fault = self.proxy.fault_for(self.command, self.path)
        if fault is None:
            self.answer(ask())
            return
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            fault(self, ask)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def answer(self, answer: Answer, cut_after: int | None = None) -> None:
        """Send an answer. The head announces the whole body; `cut_after` says how many bytes of it are sent."""
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((v for n, v in answer.headers if n.lower() == "content-length"), str(len(answer.body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:cut_after])

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def refuse(status: int, code: str) -> Fault:
    """Answer with an S3 error. The emulator does not see the request."""
    xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    return lambda handler, ask: handler.answer(Answer(status, [("Content-Type", "application/xml")], xml))


def error_in_200(handler: _Handler, ask: Callable[[], Answer]) -> None:
    """Answer 200 with an error in the body, as S3 may answer CompleteMultipartUpload. The emulator does not see it."""
    xml = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We failed</Message></Error>"
    handler.answer(Answer(200, [("Content-Type", "application/xml")], xml))


def cut(after: int) -> Fault:
    """Send the right head and only the first bytes of the body."""
    return lambda handler, ask: handler.answer(ask(), cut_after=after)


def lose(handler: _Handler, ask: Callable[[], Answer]) -> None:
    """Pass the request on, and close the connection without an answer."""
    ask()


def hang(seconds: float) -> Fault:
    """Close the connection without an answer after some seconds. The emulator does not see the request."""
    return lambda handler, ask: threading.Event().wait(seconds) and None
