"""Sends presigned requests over HTTPS, without boto3. A presigned URL is a secret: no error contains one."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import IO

import urllib3

from lambdas.storage.connections import tls_context
from lambdas.storage.logs import keep_secrets_out
from orchestrator.errors import OrchestratorError

_RETRIES = urllib3.Retry(
    total=5,
    status_forcelist=(500, 502, 503, 504),
    allowed_methods=None,  # all: an update is written once, and a part is always written with the same bytes
    backoff_factor=0.5,
    raise_on_status=False,
    redirect=False,
)
_TIMEOUT = urllib3.Timeout(connect=10, read=120)
_ERROR_BYTES = 8192
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>")


@dataclass(frozen=True)
class Answer:
    """S3's response. `code` and `message` are those of its error document, empty if it has none."""

    status: int
    headers: Mapping[str, str]
    code: str = ""
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether the request succeeded. An error of CompleteMultipartUpload can have status 200."""
        return self.status < 300 and not self.code


class FilePart(io.RawIOBase):
    """`length` bytes of a file from `start`, as a body that can be sent more than once."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self.length = length
        self._file, self._start, self._position = file, start, 0

    def read(self, size: int | None = -1) -> bytes:
        left = self.length - self._position
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        self._position = offset
        return offset


def ask(
    method: str, url: str, body: bytes | FilePart | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send a request of whose response only the status, the headers and an error document matter.

    Raises:
        OrchestratorError: the host cannot be reached.
    """
    with stream(method, url, body, headers) as response:
        return refusal(response)


@contextmanager
def stream(
    method: str, url: str, body: bytes | FilePart | None = None, headers: Mapping[str, str] | None = None
) -> Iterator[urllib3.BaseHTTPResponse]:
    """Send a request; the caller reads the body of its response.

    Raises:
        OrchestratorError: the host cannot be reached, or the connection broke.
    """
    length = {"Content-Length": str(body.length)} if isinstance(body, FilePart) else {}
    try:
        response = _pool().request(
            method, url, body=body, headers={**length, **(headers or {})}, preload_content=False, decode_content=False
        )
        try:
            yield response
        finally:
            response.drain_conn()
            response.release_conn()
    except urllib3.exceptions.HTTPError as error:
        host = urllib3.util.parse_url(url).host
        # Not chained, because the text of the error contains the URL.
        raise OrchestratorError(f"{host} cannot be reached ({type(error).__name__}). Try again later.") from None


def refusal(response: urllib3.BaseHTTPResponse) -> Answer:
    """The answer of which a streamed response consists, with its error document if it has one."""
    text = response.read(_ERROR_BYTES).decode("utf-8", errors="replace")
    code, message = _CODE.search(text), _MESSAGE.search(text)
    return Answer(response.status, response.headers, code[1] if code else "", message[1] if message else "")


@cache
def _pool() -> urllib3.PoolManager:
    keep_secrets_out()
    return urllib3.PoolManager(retries=_RETRIES, timeout=_TIMEOUT, ssl_context=tls_context())
