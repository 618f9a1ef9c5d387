"""S3 operations that take several calls, retries or conditions."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import ProtocolError

from lambdas.protocol.limits import MAX_PARTS
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import MULTIPART_ABOVE, PART_BYTES
from orchestrator.errors import OrchestratorError

_UPLOADS_AT_ONCE = 2
# The errors that boto3 raises when a body ends early or stalls, and the maximum number of consecutive failures.
_BROKEN_BODY = (HTTPClientError, IncompleteReadError)
_BODY_ATTEMPTS = 5
_CHUNK = 1024**2
# S3's error codes for missing permissions. The response of a HEAD has no body and therefore only the status.
DENIED = ("403", "AccessDenied")


def error_code(error: ClientError) -> str:
    """The service's error code; `NoSuchKey` for the 404 of a HEAD, whose response has no code."""
    code = error.response.get("Error", {}).get("Code", "")
    return "NoSuchKey" if code in ("404", "NotFound") else code


def get_bytes(bucket: Bucket, **request: Any) -> tuple[bytes, Any]:
    """The complete body of a GetObject, and its response. boto3 retries failed requests, but not broken bodies."""
    for attempt in itertools.count(1):
        try:
            response = bucket.s3.get_object(Bucket=bucket.name, **request)
        except ProtocolError as error:  # boto3 does not translate this one if an error's body ends early
            _wait_or_raise(attempt, HTTPClientError(error=error))
            continue
        try:
            return response["Body"].read(), response
        except _BROKEN_BODY as error:
            _wait_or_raise(attempt, error)
    raise AssertionError("unreachable")


def read_chunks(bucket: Bucket, key: str, start: int, stop: int, etag: str) -> Iterator[bytes]:
    """The bytes start <= b < stop of an object, in pieces. A body that breaks is resumed at the first missing byte.

    Raises:
        ClientError: S3 refused the request; 412 if the object has another ETag.
        BotoCoreError: consecutive attempts read nothing.
    """
    attempt = 0
    while start < stop:
        response = bucket.s3.get_object(Bucket=bucket.name, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=etag)
        attempt += 1
        try:
            for chunk in response["Body"].iter_chunks(_CHUNK):
                start, attempt = start + len(chunk), 1
                yield chunk
            if start < stop:
                raise IncompleteReadError(actual_bytes=0, expected_bytes=stop - start)
        except _BROKEN_BODY as error:
            _wait_or_raise(attempt, error)


def _wait_or_raise(attempt: int, error: Exception) -> None:
    """Sleep before the next attempt, or raise the error after the last one."""
    if attempt >= _BODY_ATTEMPTS:
        raise error
    time.sleep(random.uniform(0, 0.2 * 2**attempt))


def read_object(bucket: Bucket, key: str) -> tuple[bytes, str] | None:
    """A small object's bytes and ETag, None if there is no such object."""
    try:
        body, response = get_bytes(bucket, Key=key)
    except ClientError as error:
        if error_code(error) == "NoSuchKey":
            return None
        raise
    return body, response["ETag"]


def exists(bucket: Bucket, key: str) -> bool:
    """Whether there is an object at `key`."""
    try:
        bucket.s3.head_object(Bucket=bucket.name, Key=key)
    except ClientError as error:
        if error_code(error) == "NoSuchKey":
            return False
        raise
    return True


def create_object(bucket: Bucket, key: str, body: bytes) -> bool:
    """Write a small JSON document unless the object exists; returns whether it was written."""
    return swap_object(bucket, key, body, None) is not None


def swap_object(bucket: Bucket, key: str, body: bytes, etag: str | None) -> str | None:
    """Compare and swap: write a small JSON document if the object still has this ETag (None: if there is no object).

    Returns:
        The new ETag; None if another process has written the object, or if it was deleted.
    """
    condition: Any = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
    try:
        return bucket.s3.put_object(
            Bucket=bucket.name, Key=key, Body=body, ContentType="application/json", **condition
        )["ETag"]
    except ClientError as error:
        # 409: another conditional write to the same key is in progress.
        if error_code(error) not in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
            raise
    # boto3 retries a request whose response was lost, and the retry finds what the first one wrote.
    found = read_object(bucket, key)
    return found[1] if found is not None and found[0] == body else None


def list_objects(bucket: Bucket, prefix: str) -> Iterator[Any]:
    """Every object under a prefix (Key, ETag, Size, LastModified), in ascending order of keys."""
    for page in bucket.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix):
        yield from page.get("Contents", [])


def delete_objects(bucket: Bucket, keys: Sequence[str]) -> None:
    """Delete objects, a thousand in a request. A key without an object is not an error.

    Raises:
        OrchestratorError: S3 refused to delete some of them, twice.
    """
    for i in range(0, len(keys), 1000):
        left = list(keys[i : i + 1000])
        for _ in range(2):  # S3 reports single keys that failed with status 200, which boto3 does not retry
            answer = bucket.s3.delete_objects(
                Bucket=bucket.name, Delete={"Objects": [{"Key": key} for key in left], "Quiet": True}
            )
            errors = answer.get("Errors", [])
            left = [error["Key"] for error in errors]
            if not left:
                break
        else:
            raise OrchestratorError(
                f"S3 did not delete {len(left)} objects, s3://{bucket.name}/{left[0]} first "
                f"({errors[0].get('Code', 'no reason given')}). Try again, or check the role's permissions."
            )


def list_parts(bucket: Bucket, key: str, upload_id: str) -> dict[int, Any]:
    """The parts of a multipart upload so far, by part number."""
    pages = bucket.s3.get_paginator("list_parts").paginate(Bucket=bucket.name, Key=key, UploadId=upload_id)
    return {part["PartNumber"]: part for page in pages for part in page.get("Parts", [])}


def create_large_object(bucket: Bucket, key: str, file: IO[bytes], size: int) -> bool:
    """Write a file of `size` bytes unless the object exists, a large one in parts; returns whether it was written."""
    try:
        if size <= MULTIPART_ABOVE:
            bucket.s3.put_object(Bucket=bucket.name, Key=key, Body=file, ContentLength=size, IfNoneMatch="*")
            return True
        return _create_in_parts(bucket, key, file, size)
    except ClientError as error:
        if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
            return False
        raise


def completed_part(number: int, etag: str, **checksum: str | None) -> Any:
    """A part as CompleteMultipartUpload takes it. If the upload was created with a checksum algorithm, AWS requires the
    part's checksum (`ChecksumCRC32` or `ChecksumSHA256`, base64).
    """
    return {"PartNumber": number, "ETag": etag} | {name: value for name, value in checksum.items() if value}


def _create_in_parts(bucket: Bucket, key: str, file: IO[bytes], size: int) -> bool:
    part_size = max(PART_BYTES, -(-size // MAX_PARTS))
    upload_id = bucket.s3.create_multipart_upload(Bucket=bucket.name, Key=key, ChecksumAlgorithm="CRC32")["UploadId"]

    def upload(number: int, body: bytes) -> Any:
        part = bucket.s3.upload_part(Bucket=bucket.name, Key=key, UploadId=upload_id, PartNumber=number, Body=body)
        return completed_part(number, part["ETag"], ChecksumCRC32=part.get("ChecksumCRC32"))

    try:
        parts = _uploaded(iter(lambda: file.read(part_size), b""), upload)
        bucket.s3.complete_multipart_upload(
            Bucket=bucket.name, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
    except BaseException as error:
        if isinstance(error, ClientError) and error_code(error) == "NoSuchUpload":
            # The response was lost and boto3 retried the request. The caller reads what is stored.
            return False
        with contextlib.suppress(ClientError, BotoCoreError):  # the bucket's lifecycle rule deletes it later
            bucket.s3.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload_id)
        raise
    return True


def _uploaded(bodies: Iterable[bytes], upload: Callable[[int, bytes], Any]) -> list[Any]:
    """Upload parts, numbered from 1, two at a time; returns them as CompleteMultipartUpload takes them."""
    parts: list[Any] = []
    with concurrent.futures.ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool:
        under_way: list[concurrent.futures.Future[Any]] = []
        for number, body in enumerate(bodies, 1):
            if len(under_way) == _UPLOADS_AT_ONCE:
                parts.append(under_way.pop(0).result())
            under_way.append(pool.submit(upload, number, body))
        return parts + [future.result() for future in under_way]
