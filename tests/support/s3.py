"""S3 in memory, with the operations that this product calls. It is deterministic and never waits.

It answers as AWS does, with the same error codes; tests/unit/test_support.py holds it to the rules. A test that needs a
fault appends to `fail`, or overrides one operation in a subclass.
"""

from __future__ import annotations

import datetime
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from botocore.response import StreamingBody

from tests.support.aws import Service, client_error
from tests.support.objects import StoredBytes, checksum_of, etag_of, multipart_etag
from tests.support.servers import RangeServer

# LastModified of every object.
_STORED = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
# The most that one page lists (objects, parts, uploads), and that one request deletes.
PAGE = 1000


@dataclass
class Upload:
    """A multipart upload that is under way. `algorithm`: which checksum its parts need, None for any."""

    key: str
    algorithm: str | None = None
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class MemoryS3(Service):
    """One bucket.

    Attributes:
        server: serves the same objects over HTTP, to those who read presigned URLs.
        objects: by key; a test may read and change them.
        uploads: multipart uploads that are neither completed nor aborted, by id.
    """

    server: RangeServer | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        if self.server is not None:
            self.server.objects.update(self.objects)
            self.objects = self.server.objects

    # --- objects ---

    def put_object(
        self, *, Bucket: str, Key: str, Body: Any, IfNoneMatch: str = "", IfMatch: str = "",  # noqa: N803
        ContentLength: int | None = None, ChecksumSHA256: str | None = None, ContentType: str = "",  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self.request("put_object")
        body = _received(Body, ContentLength, ChecksumSHA256, "PutObject")
        self._check_condition(Key, IfNoneMatch, IfMatch, "PutObject")
        self.objects[Key] = body
        return {"ETag": body.etag}

    def _check_condition(self, key: str, if_none_match: str, if_match: str, operation: str) -> None:
        found = self.objects.get(key)
        if if_match and found is None:
            raise client_error("NoSuchKey", operation)
        if found is not None and (if_none_match or (if_match and if_match != etag_of(found))):
            raise client_error("PreconditionFailed", operation)

    def get_object(self, *, Bucket: str, Key: str, Range: str = "", IfMatch: str = "") -> dict[str, Any]:  # noqa: N803
        self.request("get_object")
        if Key not in self.objects:
            raise client_error("NoSuchKey", "GetObject")
        self._check_condition(Key, "", IfMatch, "GetObject")
        whole = self.objects[Key]
        answer, body = {"ETag": etag_of(whole)}, bytes(whole)
        if Range:
            first, last = _range(Range, len(whole))
            body = body[first : last + 1]
            answer["ContentRange"] = f"bytes {first}-{last}/{len(whole)}"
        return {**answer, "Body": StreamingBody(io.BytesIO(body), len(body)), "ContentLength": len(body)}

    def head_object(self, *, Bucket: str, Key: str, ChecksumMode: str = "") -> dict[str, Any]:  # noqa: N803
        self.request("head_object")
        if Key not in self.objects:
            raise client_error("404", "HeadObject")  # the answer to a HEAD has no body that could name a code
        body = self.objects[Key]
        answer = {"ContentLength": len(body), "ETag": etag_of(body)}
        return answer | (_checksum(body) if ChecksumMode == "ENABLED" else {})

    def delete_objects(self, *, Bucket: str, Delete: Any) -> dict[str, Any]:  # noqa: N803
        self.request("delete_objects")
        if len(Delete["Objects"]) > PAGE:
            raise client_error("MalformedXML", "DeleteObjects")
        for item in Delete["Objects"]:
            self.objects.pop(item["Key"], None)
        return {}

    def generate_presigned_url(self, operation: str, *, Params: dict[str, str], ExpiresIn: int) -> str:  # noqa: N803
        assert operation == "get_object", "the server answers nothing else"
        assert self.server is not None
        return f"{self.server.url}/{Params['Bucket']}/{Params['Key']}?X-Amz-Signature=fake"

    # --- lists ---

    def get_paginator(self, operation: str) -> _Pages:
        return _Pages(getattr(self, operation))

    def list_objects_v2(
        self, *, Bucket: str, Prefix: str = "", MaxKeys: int = PAGE, ContinuationToken: str = ""  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self.request("list_objects_v2")
        rows = [
            {"Key": key, "ETag": etag_of(body), "Size": len(body), "LastModified": _STORED}
            for key, body in sorted(self.objects.items())
            if key.startswith(Prefix) and key > ContinuationToken
        ]
        page, more = _page("Contents", rows, MaxKeys)
        return page | ({"NextContinuationToken": page["Contents"][-1]["Key"]} if more else {})

    def list_multipart_uploads(
        self, *, Bucket: str, Prefix: str = "", KeyMarker: str = "", UploadIdMarker: str = ""  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self.request("list_multipart_uploads")
        found = sorted((upload.key, upload_id) for upload_id, upload in self.uploads.items())
        rows = [
            {"Key": key, "UploadId": upload_id}
            for key, upload_id in found
            if key.startswith(Prefix) and (key, upload_id) > (KeyMarker, UploadIdMarker)
        ]
        page, more = _page("Uploads", rows, PAGE)
        last = page["Uploads"][-1] if more else {}
        return page | ({"NextKeyMarker": last["Key"], "NextUploadIdMarker": last["UploadId"]} if more else {})

    def list_parts(
        self, *, Bucket: str, Key: str, UploadId: str, PartNumberMarker: int = 0, MaxParts: int = PAGE  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self.request("list_parts")
        rows = [
            {"PartNumber": number, "Size": len(part), "ETag": etag_of(part), **_checksum(part)}
            for number, part in sorted(self._upload(Key, UploadId, "ListParts").parts.items())
            if number > PartNumberMarker
        ]
        page, more = _page("Parts", rows, MaxParts)
        return page | ({"NextPartNumberMarker": page["Parts"][-1]["PartNumber"]} if more else {})

    # --- multipart uploads ---

    def _upload(self, key: str, upload_id: str, operation: str) -> Upload:
        found = self.uploads.get(upload_id)
        if found is None or found.key != key:
            raise client_error("NoSuchUpload", operation)
        return found

    def create_multipart_upload(
        self, *, Bucket: str, Key: str, ChecksumAlgorithm: str | None = None, ContentType: str = ""  # noqa: N803
    ) -> dict[str, str]:  # fmt: skip
        self.request("create_multipart_upload")
        upload_id = f"upload-{next(self._ids)}"
        self.uploads[upload_id] = Upload(Key, ChecksumAlgorithm)
        return {"UploadId": upload_id}

    def upload_part(
        self, *, Bucket: str, Key: str, UploadId: str, PartNumber: int, Body: Any,  # noqa: N803
        ContentLength: int | None = None, ChecksumSHA256: str | None = None,  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self.request("upload_part")
        upload = self._upload(Key, UploadId, "UploadPart")
        body = _received(Body, ContentLength, ChecksumSHA256, "UploadPart")
        if upload.algorithm == "SHA256" and body.sha256 is None:
            raise client_error("InvalidRequest", "UploadPart")
        upload.parts[PartNumber] = body
        return {"ETag": body.etag, **_checksum(body)}

    def complete_multipart_upload(
        self, *, Bucket: str, Key: str, UploadId: str, MultipartUpload: Any, IfNoneMatch: str = ""  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self.request("complete_multipart_upload")
        upload = self._upload(Key, UploadId, "CompleteMultipartUpload")
        self._check_condition(Key, IfNoneMatch, "", "CompleteMultipartUpload")
        numbers = [part["PartNumber"] for part in MultipartUpload["Parts"]]
        if not numbers or numbers != sorted(set(numbers)):
            raise client_error("InvalidPartOrder" if numbers else "MalformedXML", "CompleteMultipartUpload")
        for part in MultipartUpload["Parts"]:
            stored = upload.parts.get(part["PartNumber"])
            if upload.algorithm == "SHA256" and "ChecksumSHA256" not in part:
                raise client_error("InvalidRequest", "CompleteMultipartUpload")
            if stored is None or part["ETag"].strip('"') != etag_of(stored).strip('"'):
                raise client_error("InvalidPart", "CompleteMultipartUpload")
            if part.get("ChecksumSHA256", checksum_of(stored)) != checksum_of(stored):
                raise client_error("InvalidPart", "CompleteMultipartUpload")
        chosen = [upload.parts[number] for number in numbers]
        self.objects[Key] = body = StoredBytes(b"".join(chosen), multipart_etag(chosen))
        del self.uploads[UploadId]
        return {"ETag": body.etag}

    def abort_multipart_upload(self, *, Bucket: str, Key: str, UploadId: str) -> dict[str, Any]:  # noqa: N803
        self.request("abort_multipart_upload")
        self._upload(Key, UploadId, "AbortMultipartUpload")
        del self.uploads[UploadId]
        return {}


def _received(body: Any, length: int | None, sha256: str | None, operation: str) -> StoredBytes:
    """The body of a request, once its length and its checksum are found right."""
    data = body if isinstance(body, bytes) else body.read()
    if length is not None and length != len(data):
        raise client_error("IncompleteBody", operation)
    if sha256 is not None and sha256 != checksum_of(data):
        raise client_error("BadDigest", operation)
    return StoredBytes(data, etag_of(data), sha256)


def _checksum(body: bytes) -> dict[str, str]:
    sha256 = getattr(body, "sha256", None)
    return {"ChecksumSHA256": sha256} if sha256 else {}


def _range(header: str, size: int) -> tuple[int, int]:
    """The first and the last byte of `bytes=first-last`; the last may be left out or lie beyond the end."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", header)
    assert found, f"Range {header!r} is not of the form that S3 in memory knows"
    first, last = int(found[1]), min(int(found[2] or size), size - 1)
    if first > last:
        raise client_error("InvalidRange", "GetObject")
    return first, last


def _page(name: str, rows: list[dict[str, Any]], most: int) -> tuple[dict[str, Any], bool]:
    """The first of the rows, and whether there are more. Where there are none, S3 leaves the list out."""
    shown, more = rows[: min(most, PAGE)], len(rows) > min(most, PAGE)
    return {"IsTruncated": more, **({name: shown} if shown else {})}, more


@dataclass
class _Pages:
    """What boto3's paginator does with an operation."""

    operation: Callable[..., dict[str, Any]]

    def paginate(self, **request: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self.operation(**request)
            yield page
            if not page["IsTruncated"]:
                return
            request |= {name.removeprefix("Next"): value for name, value in page.items() if name.startswith("Next")}
