"""S3 and SQS in memory, as far as a round uses them: deterministic, without waiting, so that hundreds can die.

S3 keeps its conditional writes and multipart uploads; SQS delivers at least once, in any order, and hides what was
received until somebody says that the visibility timeout has passed. `Mortal` is how a process reaches them: it dies at
its n-th call, and nothing that it calls afterwards arrives.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from tests.support import BUCKET, RangeServer

# When anything was stored.
_STORED = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Killed(BaseException):
    """The process is dead."""


class Mortal:
    """An AWS client of a process that dies before or after its n-th call, counted over all of its clients."""

    def __init__(self, api: Any, life: Life) -> None:
        self._api, self._life = api, life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._api, name)
        if name == "generate_presigned_url":  # asks nobody
            return found
        if name == "get_paginator":
            return lambda what: _MortalPages(found(what), self._life)
        return lambda **request: self._life.call(lambda: found(**request))


@dataclass
class _MortalPages:
    pages: Any
    life: Life

    def paginate(self, **request: Any) -> list[Any]:
        return self.life.call(lambda: list(self.pages.paginate(**request)))


@dataclass
class Life:
    """How many calls a process has left (None: any number), and whether it dies after the last one's effect."""

    left: int | None = None
    after: bool = False
    dead: bool = False

    def call(self, do: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.dead = True
                if self.after:
                    do()
                raise Killed
        return do()


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": code}}, "Operation")


class MemoryS3:
    """One bucket. Updates are read through `server`, which shares its objects."""

    def __init__(self, server: RangeServer) -> None:
        self.server = server
        self.objects = server.objects
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self._ids = itertools.count(1)

    # -- objects --

    def put_object(
        self, *, Key: str, Body: Any, IfNoneMatch: str | None = None, IfMatch: str | None = None, **_: Any  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        body = Body if isinstance(Body, bytes) else Body.read()
        self._check(Key, IfNoneMatch, IfMatch)
        return {"ETag": self._store(Key, body)}

    def _check(self, key: str, if_none_match: str | None, if_match: str | None) -> None:
        found = self.objects.get(key)
        if (if_none_match and found) or (if_match and found and found[1] != if_match):
            raise refused("PreconditionFailed")
        if if_match and not found:
            raise refused("NoSuchKey")

    def _store(self, key: str, body: bytes) -> str:
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        self.objects[key] = (body, etag)
        return etag

    def get_object(self, *, Key: str, Range: str = "", IfMatch: str | None = None, **_: Any) -> dict[str, Any]:  # noqa: N803
        if Key not in self.objects:
            raise refused("NoSuchKey")
        self._check(Key, None, IfMatch)
        body, etag = self.objects[Key]
        if Range:
            first, last = map(int, Range.removeprefix("bytes=").split("-"))
            body = body[first : last + 1]
        return {"Body": StreamingBody(io.BytesIO(body), len(body)), "ETag": etag, "ContentLength": len(body)}

    def head_object(self, *, Key: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        if Key not in self.objects:
            raise refused("404")
        return {"ETag": self.objects[Key][1], "ContentLength": len(self.objects[Key][0])}

    def delete_objects(self, *, Delete: Any, **_: Any) -> dict[str, Any]:  # noqa: N803
        for item in Delete["Objects"]:
            self.objects.pop(item["Key"], None)
        return {}

    def generate_presigned_url(self, operation: str, *, Params: dict[str, str], ExpiresIn: int) -> str:  # noqa: N803
        return f"{self.server.url}/{BUCKET}/{Params['Key']}?X-Amz-Signature=fake"

    # -- lists --

    def get_paginator(self, operation: str) -> Any:
        return _Pages(getattr(self, f"_{operation}"))

    def _list_objects_v2(self, *, Prefix: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        found = sorted((key, value) for key, value in self.objects.items() if key.startswith(Prefix))
        return {
            "Contents": [
                {"Key": key, "ETag": etag, "Size": len(body), "LastModified": _STORED} for key, (body, etag) in found
            ]
        }

    def _list_multipart_uploads(self, *, Prefix: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        return {"Uploads": [{"Key": key, "UploadId": i} for i, (key, _) in self.uploads.items() if key == Prefix]}

    def _list_parts(self, *, UploadId: str, PartNumberMarker: int = 0, **_: Any) -> dict[str, Any]:  # noqa: N803
        parts = sorted((n, body) for n, body in self._parts(UploadId).items() if n > PartNumberMarker)
        return {"Parts": [{"PartNumber": n, "Size": len(b), "ETag": hashlib.md5(b).hexdigest()} for n, b in parts]}

    list_parts = _list_parts

    # -- multipart uploads --

    def _parts(self, upload_id: str) -> dict[int, bytes]:
        if upload_id not in self.uploads:
            raise refused("NoSuchUpload")
        return self.uploads[upload_id][1]

    def create_multipart_upload(self, *, Key: str, **_: Any) -> dict[str, str]:  # noqa: N803
        upload_id = f"upload-{next(self._ids)}"
        self.uploads[upload_id] = (Key, {})
        return {"UploadId": upload_id}

    def upload_part(self, *, UploadId: str, PartNumber: int, Body: Any, **_: Any) -> dict[str, str]:  # noqa: N803
        self._parts(UploadId)[PartNumber] = body = Body.read()
        return {"ETag": hashlib.md5(body).hexdigest()}

    def complete_multipart_upload(
        self, *, Key: str, UploadId: str, MultipartUpload: Any, IfNoneMatch: str, **_: Any  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        parts = self._parts(UploadId)
        self._check(Key, IfNoneMatch, None)
        chosen = [parts[part["PartNumber"]] for part in MultipartUpload["Parts"]]
        for part, body in zip(MultipartUpload["Parts"], chosen, strict=True):
            assert part["ETag"] == hashlib.md5(body).hexdigest()
        del self.uploads[UploadId]
        return {"ETag": self._store(Key, b"".join(chosen))}

    def abort_multipart_upload(self, *, UploadId: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        self._parts(UploadId)
        del self.uploads[UploadId]
        return {}


@dataclass
class _Pages:
    page: Callable[..., dict[str, Any]]

    def paginate(self, **request: Any) -> Iterator[dict[str, Any]]:
        yield self.page(**request)


@dataclass
class Message:
    """A message in a queue; hidden once it was received, until its visibility timeout passes."""

    body: str
    handle: str
    received: int = 0
    hidden: bool = False


@dataclass
class MemorySqs:
    """Queues by URL. `choose` picks the next message among those that are visible: SQS promises no order."""

    queues: dict[str, list[Message]] = field(default_factory=dict)
    choose: Callable[[int], int] = lambda count: 0
    on_receive: Callable[[str], None] = lambda url: None
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def queue(self, url: str) -> list[Message]:
        return self.queues.setdefault(url, [])

    def send_message(self, *, QueueUrl: str, MessageBody: str) -> dict[str, Any]:  # noqa: N803
        self.queue(QueueUrl).append(Message(MessageBody, f"handle-{next(self._ids)}"))
        return {}

    def send_message_batch(self, *, QueueUrl: str, Entries: list[Any]) -> dict[str, Any]:  # noqa: N803
        for entry in Entries:
            self.send_message(QueueUrl=QueueUrl, MessageBody=entry["MessageBody"])
        return {}

    def receive_message(self, *, QueueUrl: str, MaxNumberOfMessages: int = 1, **_: Any) -> dict[str, Any]:  # noqa: N803
        self.on_receive(QueueUrl)
        taken = []
        while len(taken) < MaxNumberOfMessages:
            visible = [message for message in self.queue(QueueUrl) if not message.hidden]
            if not visible:
                break
            message = visible[self.choose(len(visible))]
            message.hidden, message.received = True, message.received + 1
            taken.append(message)
        if not taken:
            return {}
        return {
            "Messages": [
                {
                    "Body": m.body,
                    "ReceiptHandle": m.handle,
                    "Attributes": {"ApproximateReceiveCount": str(m.received)},
                }
                for m in taken
            ]
        }

    def delete_message(self, *, QueueUrl: str, ReceiptHandle: str) -> dict[str, Any]:  # noqa: N803
        self.queues[QueueUrl] = [m for m in self.queue(QueueUrl) if m.handle != ReceiptHandle]
        return {}

    def delete_message_batch(self, *, QueueUrl: str, Entries: list[Any]) -> dict[str, Any]:  # noqa: N803
        for entry in Entries:
            self.delete_message(QueueUrl=QueueUrl, ReceiptHandle=entry["ReceiptHandle"])
        return {}

    def change_message_visibility(self, *, QueueUrl: str, ReceiptHandle: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        for message in self.queue(QueueUrl):
            if message.handle == ReceiptHandle:
                message.hidden = False
        return {}

    def change_message_visibility_batch(self, *, QueueUrl: str, Entries: list[Any]) -> dict[str, Any]:  # noqa: N803
        for entry in Entries:
            self.change_message_visibility(QueueUrl=QueueUrl, ReceiptHandle=entry["ReceiptHandle"])
        return {}

    def time_out(self, url: str) -> None:
        """The visibility timeout of everything that was received has passed."""
        for message in self.queue(url):
            message.hidden = False

    def duplicate(self, url: str, index: int) -> None:
        """Deliver a message twice, as a standard queue may."""
        original = self.queue(url)[index]
        self.queue(url).append(Message(original.body, f"handle-{next(self._ids)}", original.received))
