"""Small fakes and factories for the unit tests: rounds in memory, an S3 that misbehaves on request."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
import socket
import socketserver
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from lambdas.protocol.keys import global_key, update_key
from lambdas.protocol.manifest import Output, Participant, RoundManifest
from lambdas.protocol.tensor_table import TensorSpec, TensorTable, shard_bounds

ROUND, MODEL, BUCKET = "r-0001", "demo", "bucket"


@dataclass(frozen=True)
class Update:
    """One client's data section: its bytes, weight and layout."""

    data: bytes
    num_examples: int = 1
    layout: int = 0
    header: bytes = b"H" * 16

    @property
    def body(self) -> bytes:
        return self.header + self.data

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.body).hexdigest()}"'


def client_name(index: int) -> str:
    return f"c-{index:05d}"


def table_of(*specs: tuple[str, int]) -> TensorTable:
    """Tensors t0, t1, ... of the given (dtype, length)."""
    return TensorTable(tuple(TensorSpec(f"t{i}", dtype, (length,)) for i, (dtype, length) in enumerate(specs)))


def manifest_of(
    table: TensorTable,
    updates: Sequence[Update],
    *,
    shards: int = 1,
    layouts: Sequence[Sequence[str]] | None = None,
    output: Output | None = None,
) -> RoundManifest:
    """The manifest of a round with these updates; it survives its own parser."""
    manifest = RoundManifest(
        round_id=ROUND,
        model=MODEL,
        participants=tuple(
            Participant(
                client=client_name(i),
                key=update_key(ROUND, client_name(i)),
                etag=update.etag,
                size=len(update.body),
                data_offset=len(update.header),
                num_examples=update.num_examples,
                header_sha256=hashlib.sha256(update.header).hexdigest(),
                layout=update.layout,
            )
            for i, update in enumerate(updates)
        ),
        table=table,
        layouts=tuple(map(tuple, layouts)) if layouts else (tuple(t.dtype for t in table.tensors),),
        bounds=shard_bounds(table, shards),
        output=output or Output("objects", global_key(MODEL, ROUND)),
        created_at=1.0,
    )
    return RoundManifest.from_bytes(manifest.to_bytes())


class MemoryStreams:
    """Opens streams over updates in memory; counts what is open."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._data = {client_name(i): update.data for i, update in enumerate(updates)}
        self.opened = self.open = self.most_open = 0

    def __call__(self, participant: Participant, start: int, stop: int) -> MemoryStream:
        self.opened += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return MemoryStream(self, self._data[participant.client][start:stop])


class MemoryStream:
    def __init__(self, streams: MemoryStreams, data: bytes) -> None:
        self._streams, self._file = streams, io.BytesIO(data)

    def readinto(self, view: memoryview) -> None:
        assert self._file.readinto(view) == len(view), "read past the end of the range"

    def close(self) -> None:
        self._streams.open -= 1


# --- an S3 that misbehaves -----------------------------------------------------------------------------------------

# Answers one request: gets the handler and the request, does what it likes; returns whether the connection stays.
Answer = Callable[["_Handler", "Request"], bool]


@dataclass(frozen=True)
class Request:
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
    """GET with Range and If-Match over plain HTTP on loopback. `script` holds answers for the next requests."""

    def __init__(self, objects: dict[str, tuple[bytes, str]]) -> None:
        self.objects = objects
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
                while self.one():
                    pass
        finally:
            with owner.lock:
                owner.open -= 1

    def one(self) -> bool:
        line = self.rfile.readline().decode()
        if not line:
            return False
        headers = {}
        while text := self.rfile.readline().decode().strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        key = urllib.parse.urlsplit(line.split(" ")[1]).path.removeprefix(f"/{BUCKET}/")
        owner = self.server.owner
        body, etag = owner.objects.get(key, (b"", ""))
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", "bytes=0-0"))
        assert match
        request = Request(key, headers, int(match[1]), int(match[2]), body, etag)
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
    """The right answer."""
    if not request.body:
        return error("404 Not Found", "NoSuchKey")(handler, request)
    if request.headers.get("if-match") != request.etag:
        return error("412 Precondition Failed", "PreconditionFailed")(handler, request)
    return handler.reply("206 Partial Content", request.part, _range_headers(request))


def _range_headers(request: Request) -> dict[str, str]:
    return {"Content-Range": f"bytes {request.first}-{request.last}/{len(request.body)}", "ETag": request.etag}


def error(status: str, code: str, body: bytes | None = None) -> Answer:
    """An S3 error answer."""
    xml = f"<Error><Code>{code}</Code></Error>".encode() if body is None else body
    return lambda handler, request: handler.reply(status, xml)


def cut(after: int) -> Answer:
    """A good head, then only `after` bytes of the body, then the end of the connection."""

    def answer(handler: _Handler, request: Request) -> bool:
        lines = ["HTTP/1.1 206 Partial Content", f"Content-Length: {len(request.part)}"]
        lines += [f"{name}: {value}" for name, value in _range_headers(request).items()]
        handler.wfile.write("\r\n".join([*lines, "", ""]).encode() + request.part[:after])
        return False

    return answer


def hang_up(handler: _Handler, request: Request) -> bool:
    """Close without an answer."""
    return False


def reset(handler: _Handler, request: Request) -> bool:
    """Reset the connection without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()
    raise ConnectionResetError


def serve_and_close(handler: _Handler, request: Request) -> bool:
    """The right answer, then close the connection although it was to be kept."""
    serve(handler, request)
    return False


def hang(seconds: float) -> Answer:
    """No answer for a while, then the end."""

    def answer(handler: _Handler, request: Request) -> bool:
        threading.Event().wait(seconds)
        return False

    return answer


def with_headers(status: str, headers: Callable[[Request], dict[str, str]], body: bytes | None = None) -> Answer:
    """A body under headers of the test's choice."""
    return lambda handler, request: handler.reply(
        status, request.part if body is None else body, {**_range_headers(request), **headers(request)}
    )


# --- boto3 clients -------------------------------------------------------------------------------------------------


def client_error(code: str, operation: str = "Operation") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": code}}, operation)


@dataclass
class FakeS3:
    """The S3 calls of a worker, in memory; ranges are read from `server`."""

    server: RangeServer | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, str, int], bytes] = field(default_factory=dict)
    uploads: set[str] = field(default_factory=set)
    fail: list[Exception] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.fail:
            raise self.fail.pop(0)

    def generate_presigned_url(self, operation: str, *, Params: dict[str, str], ExpiresIn: int) -> str:  # noqa: N803
        assert self.server is not None
        assert operation == "get_object"
        return f"{self.server.url}/{Params['Bucket']}/{Params['Key']}?X-Amz-Signature=fake"

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        self._call("get_object")
        if Key not in self.objects:
            raise client_error("NoSuchKey", "GetObject")
        return {"Body": io.BytesIO(self.objects[Key]), "ETag": _etag(self.objects[Key])}

    def head_object(self, *, Bucket: str, Key: str, ChecksumMode: str) -> dict[str, Any]:  # noqa: N803
        self._call("head_object")
        if Key not in self.objects:
            raise client_error("404", "HeadObject")
        body = self.objects[Key]
        return {"ContentLength": len(body), "ETag": _etag(body), "ChecksumSHA256": _checksum(body)}

    def put_object(
        self, *, Bucket: str, Key: str, Body: Any, ContentLength: int = 0, ChecksumSHA256: str = ""  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self._call("put_object")
        if isinstance(Body, bytes):  # a small document, sent as it is
            self.objects[Key] = Body
            return {"ETag": _etag(Body)}
        self.objects[Key] = Body.read()
        assert ChecksumSHA256 == _checksum(self.objects[Key])
        assert len(self.objects[Key]) == ContentLength
        return {"ETag": _etag(self.objects[Key])}

    def upload_part(
        self,
        *,
        Bucket: str,  # noqa: N803
        Key: str,  # noqa: N803
        UploadId: str,  # noqa: N803
        PartNumber: int,  # noqa: N803
        Body: Any,  # noqa: N803
        ContentLength: int,  # noqa: N803
        ChecksumSHA256: str,  # noqa: N803
    ) -> dict[str, Any]:
        self._call("upload_part")
        self._check_upload(UploadId)
        data = Body.read()
        assert len(data) == ContentLength
        assert ChecksumSHA256 == _checksum(data)
        self.parts[Key, UploadId, PartNumber] = data
        return {"ETag": _etag(data)}

    def list_parts(
        self, *, Bucket: str, Key: str, UploadId: str, PartNumberMarker: int, MaxParts: int  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self._call("list_parts")
        self._check_upload(UploadId)
        found = sorted(
            (number, data)
            for (key, upload, number), data in self.parts.items()
            if (key, upload) == (Key, UploadId) and number > PartNumberMarker
        )[:MaxParts]
        if not found:
            return {"IsTruncated": False}
        return {
            "Parts": [
                {"PartNumber": n, "Size": len(d), "ETag": _etag(d), "ChecksumSHA256": _checksum(d)} for n, d in found
            ]
        }

    def _check_upload(self, upload_id: str) -> None:
        if upload_id not in self.uploads:
            raise client_error("NoSuchUpload", "UploadPart")


@dataclass
class FakeSqs:
    """Keeps what is sent."""

    sent: list[tuple[str, str]] = field(default_factory=list)
    hidden: list[tuple[str, str, int]] = field(default_factory=list)
    fail: list[Exception] = field(default_factory=list)

    def send_message(self, *, QueueUrl: str, MessageBody: str) -> dict[str, Any]:  # noqa: N803
        if self.fail:
            raise self.fail.pop(0)
        self.sent.append((QueueUrl, MessageBody))
        return {"MessageId": "m"}

    def change_message_visibility(self, *, QueueUrl: str, ReceiptHandle: str, VisibilityTimeout: int) -> None:  # noqa: N803
        self.hidden.append((QueueUrl, ReceiptHandle, VisibilityTimeout))


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()
