"""A server of the S3 and SQS requests of one averaging function, over TLS, several times faster than its network.

    python -m benchmarks.s3_server --host 10.77.0.1 --directory /tmp/x --workload '{"clients": 20, ...}'

It serves the updates of a `Workload`, and the same updates in the paper's layout (`paper/<client>/<shard>.npy`, one
object per client and shard). It takes parts and objects, of which it keeps SHA-256 and length, and result messages. It
prints one JSON line when it listens, and one with the requests so far after each line on its standard input. It knows
GET with Range and If-Match (206, 412, 416, 404), ListParts, UploadPart, PutObject and SendMessage; bodies may be
aws-chunked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from benchmarks.workload import BUCKET, ROUND, Workload, client_name, client_pieces, etag, pool
from lambdas.protocol.keys import manifest_key, update_key


@dataclass
class Seen:
    """The requests so far, and the largest number of connections that were open at once."""

    gets: int = 0
    puts: int = 0
    most_open: int = 0
    stored: dict[str, str] = field(default_factory=dict)  # key: SHA-256
    messages: list[str] = field(default_factory=list)
    tls: str = ""  # version and cipher of the last connection


class Objects:
    """The objects of a workload: key to ETag, length and bytes."""

    def __init__(self, workload: Workload) -> None:
        # ETag, client, the bytes in front of the client's values, and the byte range of these values.
        self._objects = {manifest_key(ROUND): ('"fixed"', 0, workload.manifest().to_bytes(), 0, 0)}
        start, stop = workload.range
        npy = io.BytesIO()
        np.lib.format.write_array_header_1_0(npy, {"descr": "<f4", "fortran_order": False, "shape": (stop - start,)})
        for client in range(workload.clients):
            tag, name, head = etag(client), client_name(client), workload.update_header(client)
            self._objects[update_key(ROUND, name)] = (tag, client, head, 0, workload.table.nbytes)
            self._objects[f"paper/{name}/{workload.shard}.npy"] = (tag, client, npy.getvalue(), start * 4, stop * 4)

    def find(self, key: str) -> tuple[str, int] | None:
        """ETag and length; None if there is no such object."""
        if key not in self._objects:
            return None
        tag, _, head, start, stop = self._objects[key]
        return tag, len(head) + stop - start

    def pieces(self, key: str, first: int, last: int) -> Iterator[memoryview]:
        """The bytes first <= b < last of an object."""
        _, client, head, start, _ = self._objects[key]
        if first < len(head):
            yield memoryview(head)[first:last]
        values = max(first - len(head), 0), last - len(head)
        if values[0] < values[1]:
            yield from client_pieces(client, start + values[0], start + values[1])


class Server:
    """A thread per connection; the bytes go from the pool to OpenSSL without a copy in Python."""

    def __init__(self, objects: Objects, listener: socket.socket, tls: ssl.SSLContext) -> None:
        self.seen = Seen()
        self._objects = objects
        self._listener = listener
        self._tls = tls
        self._lock = threading.Lock()
        self._open = 0

    def serve(self) -> None:
        """Accept connections until the process ends."""
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def _connection(self, connection: socket.socket) -> None:
        with self._lock:
            self._open += 1
            self.seen.most_open = max(self.seen.most_open, self._open)
        try:
            connection = self._tls.wrap_socket(connection, server_side=True)
            cipher = connection.cipher()
            self.seen.tls = f"{connection.version()} {cipher[0] if cipher else 'no cipher'}"
            reader = connection.makefile("rb", buffering=64 * 1024)
            while self._request(connection, reader):
                pass
        except (OSError, ValueError):
            pass  # the client went away
        finally:
            connection.close()
            with self._lock:
                self._open -= 1

    def _request(self, connection: socket.socket, reader: Any) -> bool:
        line = reader.readline().decode()
        if not line:
            return False
        method, target, _ = line.split(" ", 2)
        headers: dict[str, str] = {}
        while (header := reader.readline().decode().strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        url = urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True)
        key = unquote(url.path).removeprefix(f"/{BUCKET}/")
        if headers.get("expect") == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if method == "PUT":
            self._put(connection, reader, headers, key)
        elif method == "POST":
            self._message(connection, reader.read(int(headers["content-length"])))
        elif "uploadId" in query:
            xml = b"<ListPartsResult><IsTruncated>false</IsTruncated></ListPartsResult>"
            _answer(connection, "200 OK", {"Content-Type": "application/xml"}, xml)
        else:
            self._get(connection, headers, key)
        return True

    def _get(self, connection: socket.socket, headers: dict[str, str], key: str) -> None:
        with self._lock:
            self.seen.gets += 1
        found = self._objects.find(key)
        if found is None:
            return _refuse(connection, "404 Not Found", "NoSuchKey")
        tag, size = found
        if headers.get("if-match", tag) != tag:
            return _refuse(connection, "412 Precondition Failed", "PreconditionFailed")
        first, last, status = 0, size, "200 OK"
        extra = {"ETag": tag, "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", "")):
            first, last, status = int(match[1]), min(int(match[2]) + 1, size), "206 Partial Content"
            if first >= size:
                return _refuse(connection, "416 Range Not Satisfiable", "InvalidRange")
            extra["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
        connection.sendall(_head(status, extra, last - first))
        for piece in self._objects.pieces(key, first, last):
            for at in range(0, len(piece), 1 << 20):
                connection.sendall(piece[at : at + (1 << 20)])
        return None

    def _put(self, connection: socket.socket, reader: Any, headers: dict[str, str], key: str) -> None:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        for piece in _body(reader, headers):
            sha256.update(piece)
            md5.update(piece)
        with self._lock:
            self.seen.puts += 1
            self.seen.stored[key] = sha256.hexdigest()
        _answer(connection, "200 OK", {"ETag": f'"{md5.hexdigest()}"'}, b"")

    def _message(self, connection: socket.socket, data: bytes) -> None:
        body = json.loads(data)["MessageBody"]
        self.seen.messages.append(body)
        md5 = hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()
        answer = json.dumps({"MessageId": "m", "MD5OfMessageBody": md5}).encode()
        _answer(connection, "200 OK", {"Content-Type": "application/x-amz-json-1.0"}, answer)


def _head(status: str, headers: dict[str, str], length: int) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", "Server: AmazonS3", "x-amz-request-id: bench"]
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()


def _answer(connection: socket.socket, status: str, headers: dict[str, str], body: bytes) -> None:
    connection.sendall(_head(status, headers, len(body)) + body)


def _refuse(connection: socket.socket, status: str, code: str) -> None:
    _answer(connection, status, {}, f"<Error><Code>{code}</Code></Error>".encode())


def _body(reader: Any, headers: dict[str, str]) -> Iterator[bytes]:
    """The body of a PUT, without HTTP's chunks and S3's own; boto3 sends the latter inside the former."""
    outer: Iterator[bytes] = iter(())
    if headers.get("transfer-encoding") == "chunked":
        outer = _chunks(reader)
        reader = io.BufferedReader(_Joined(outer), 64 * 1024)
    if "aws-chunked" in headers.get("content-encoding", ""):
        yield from _chunks(reader)
    else:
        left = int(headers["content-length"])
        while left and (piece := reader.read(min(left, 1 << 20))):
            left -= len(piece)
            yield piece
    for _ in outer:  # the end of HTTP's chunks
        pass


class _Joined(io.RawIOBase):
    """A stream of the bytes that an iterator yields."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _chunks(reader: Any) -> Iterator[bytes]:
    while size := int(reader.readline().split(b";")[0], 16):
        yield reader.read(size)
        reader.readline()
    while reader.readline().strip():  # trailers
        pass


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--directory", type=Path, required=True, help="has server.pem: a certificate and its key")
    parser.add_argument("--workload", default="{}", help="fields of Workload, as JSON")
    args = parser.parse_args()
    pool()
    listener = socket.create_server((args.host, 0), backlog=1024)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(args.directory / "server.pem")
    server = Server(Objects(Workload(**json.loads(args.workload))), listener, tls)
    threading.Thread(target=server.serve, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(asdict(server.seen)), flush=True)


if __name__ == "__main__":
    main()
