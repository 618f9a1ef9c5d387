"""S3 and SQS in memory."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from tests.support.manifests import BUCKET
from tests.support.servers import RangeServer

# When anything was stored.
_STORED = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


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
            raise client_error("PreconditionFailed")
        if if_match and not found:
            raise client_error("NoSuchKey")

    def _store(self, key: str, body: bytes) -> str:
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        self.objects[key] = (body, etag)
        return etag

    def get_object(self, *, Key: str, Range: str = "", IfMatch: str | None = None, **_: Any) -> dict[str, Any]:  # noqa: N803
        if Key not in self.objects:
            raise client_error("NoSuchKey")
        self._check(Key, None, IfMatch)
        body, etag = self.objects[Key]
        if Range:
            first, last = map(int, Range.removeprefix("bytes=").split("-"))
            body = body[first : last + 1]
        return {"Body": StreamingBody(io.BytesIO(body), len(body)), "ETag": etag, "ContentLength": len(body)}

    def head_object(self, *, Key: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        if Key not in self.objects:
            raise client_error("404")
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
            raise client_error("NoSuchUpload")
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
