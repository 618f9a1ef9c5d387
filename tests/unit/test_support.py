"""S3, SQS and the range server of the tests answer as AWS does, where the product depends on it."""

from __future__ import annotations

import hashlib
import io
import urllib.error
import urllib.request
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.manifests import BUCKET
from tests.support.mortal import Killed, Life, Mortal
from tests.support.objects import checksum_of, etag_of
from tests.support.s3 import PAGE, MemoryS3
from tests.support.servers import RangeServer
from tests.support.sqs import BATCH, MemorySqs


def code_of(operation: Any, **request: Any) -> str:
    """The error code of an operation that is refused."""
    with pytest.raises(ClientError) as caught:
        operation(Bucket=BUCKET, **request)
    return str(caught.value.response["Error"]["Code"])


def put(s3: MemoryS3, key: str, body: bytes, **condition: str) -> str:
    etag: str = s3.put_object(Bucket=BUCKET, Key=key, Body=body, **condition)["ETag"]
    return etag


# --- S3: objects ---------------------------------------------------------------------------------------------------


def test_a_put_on_condition_that_the_key_is_free_writes_once() -> None:
    s3 = MemoryS3()
    put(s3, "k", b"first", IfNoneMatch="*")
    assert code_of(s3.put_object, Key="k", Body=b"second", IfNoneMatch="*") == "PreconditionFailed"
    assert s3.objects == {"k": b"first"}


def test_an_empty_object_takes_its_key_too() -> None:
    s3 = MemoryS3()
    put(s3, "k", b"")
    assert code_of(s3.put_object, Key="k", Body=b"second", IfNoneMatch="*") == "PreconditionFailed"


def test_a_put_on_condition_of_an_etag_replaces_that_object_only() -> None:
    s3 = MemoryS3()
    assert code_of(s3.put_object, Key="k", Body=b"x", IfMatch='"e"') == "NoSuchKey"
    old = put(s3, "k", b"first")
    put(s3, "k", b"second", IfMatch=old)
    assert code_of(s3.put_object, Key="k", Body=b"third", IfMatch=old) == "PreconditionFailed"
    assert s3.objects == {"k": b"second"}


def test_a_body_that_is_not_the_announced_one_is_refused() -> None:
    s3 = MemoryS3()
    assert code_of(s3.put_object, Key="k", Body=io.BytesIO(b"abc"), ContentLength=4) == "IncompleteBody"
    assert code_of(s3.put_object, Key="k", Body=b"abc", ChecksumSHA256=checksum_of(b"abd")) == "BadDigest"
    assert s3.objects == {}


def test_a_checksum_is_answered_where_one_was_sent_and_is_asked_for() -> None:
    s3 = MemoryS3()
    put(s3, "with", b"abc", ChecksumSHA256=checksum_of(b"abc"))
    put(s3, "without", b"abc")
    assert s3.head_object(Bucket=BUCKET, Key="with", ChecksumMode="ENABLED")["ChecksumSHA256"] == checksum_of(b"abc")
    assert "ChecksumSHA256" not in s3.head_object(Bucket=BUCKET, Key="with")
    assert "ChecksumSHA256" not in s3.head_object(Bucket=BUCKET, Key="without", ChecksumMode="ENABLED")


def test_a_missing_object_is_refused_and_a_head_names_only_the_status() -> None:
    s3 = MemoryS3()
    assert code_of(s3.get_object, Key="k") == "NoSuchKey"
    assert code_of(s3.head_object, Key="k") == "404"


@pytest.mark.parametrize(
    ("header", "body", "content_range"),
    [
        ("bytes=0-0", b"a", "bytes 0-0/6"),
        ("bytes=2-3", b"cd", "bytes 2-3/6"),
        ("bytes=4-99", b"ef", "bytes 4-5/6"),
        ("bytes=3-", b"def", "bytes 3-5/6"),
    ],
)
def test_a_range_is_answered_up_to_the_end_of_the_object(header: str, body: bytes, content_range: str) -> None:
    s3 = MemoryS3()
    etag = put(s3, "k", b"abcdef")
    answer = s3.get_object(Bucket=BUCKET, Key="k", Range=header, IfMatch=etag)
    assert (answer["Body"].read(), answer["ContentRange"], answer["ETag"]) == (body, content_range, etag)


def test_a_range_beyond_the_end_and_a_range_of_another_object_are_refused() -> None:
    s3 = MemoryS3()
    put(s3, "k", b"abcdef")
    assert code_of(s3.get_object, Key="k", Range="bytes=6-7") == "InvalidRange"
    assert code_of(s3.get_object, Key="k", Range="bytes=0-1", IfMatch='"other"') == "PreconditionFailed"


# --- S3: lists -----------------------------------------------------------------------------------------------------


def test_a_page_lists_a_thousand_objects_and_the_paginator_lists_all() -> None:
    s3 = MemoryS3(objects={f"p/{i:05d}": b"" for i in reversed(range(2 * PAGE + 1))} | {"q": b""})
    first = s3.list_objects_v2(Bucket=BUCKET, Prefix="p/")
    assert (len(first["Contents"]), first["IsTruncated"]) == (1000, True)
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="p/"))
    assert [len(page["Contents"]) for page in pages] == [1000, 1000, 1]
    assert [item["Key"] for page in pages for item in page["Contents"]] == sorted(set(s3.objects) - {"q"})


def test_an_empty_page_has_no_list() -> None:
    s3 = MemoryS3()
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix="p/") == {"IsTruncated": False}


def test_uploads_are_listed_in_pages() -> None:
    s3 = MemoryS3()
    made = {s3.create_multipart_upload(Bucket=BUCKET, Key=f"k{i % 2}")["UploadId"] for i in range(PAGE + 2)}
    pages = list(s3.get_paginator("list_multipart_uploads").paginate(Bucket=BUCKET, Prefix="k"))
    assert [len(page["Uploads"]) for page in pages] == [1000, 2]
    assert {upload["UploadId"] for page in pages for upload in page["Uploads"]} == made


def test_no_more_than_a_thousand_objects_are_deleted_at_once() -> None:
    s3 = MemoryS3(objects={"a": b"", "b": b""})
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "a"}, {"Key": "missing"}]})
    assert list(s3.objects) == ["b"]
    assert code_of(s3.delete_objects, Delete={"Objects": [{"Key": "b"}] * (PAGE + 1)}) == "MalformedXML"


# --- S3: multipart uploads -----------------------------------------------------------------------------------------


def begin(s3: MemoryS3, algorithm: str | None = None) -> dict[str, str]:
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="k", ChecksumAlgorithm=algorithm)
    return {"Key": "k", "UploadId": upload["UploadId"]}


def part(s3: MemoryS3, upload: dict[str, str], number: int, body: bytes, **checksum: str) -> dict[str, Any]:
    answer = s3.upload_part(Bucket=BUCKET, **upload, PartNumber=number, Body=body, **checksum)
    return {"PartNumber": number, "ETag": answer["ETag"]}


def complete(s3: MemoryS3, upload: dict[str, str], parts: list[Any], **condition: str) -> str:
    answer = s3.complete_multipart_upload(Bucket=BUCKET, **upload, MultipartUpload={"Parts": parts}, **condition)
    etag: str = answer["ETag"]
    return etag


def test_parts_come_in_any_order_and_the_last_of_a_number_counts() -> None:
    s3 = MemoryS3()
    upload = begin(s3)
    second = part(s3, upload, 2, b"de")
    first = part(s3, upload, 1, b"xxx")
    again = part(s3, upload, 1, b"abc")
    assert code_of(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": [first, second]}) == "InvalidPart"
    wrong = code_of(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": [second, again]})
    assert wrong == "InvalidPartOrder"
    etag = complete(s3, upload, [again, second])
    assert s3.objects == {"k": b"abcde"}
    assert s3.head_object(Bucket=BUCKET, Key="k")["ETag"] == etag
    assert etag.endswith('-2"'), "the ETag of parts is not the MD5 of the whole"
    assert etag_of(b"abcde") == f'"{hashlib.md5(b"abcde").hexdigest()}"'


def test_an_upload_that_is_completed_or_aborted_or_of_another_key_is_not_there() -> None:
    s3 = MemoryS3()
    done, aborted, running = begin(s3), begin(s3), begin(s3)
    complete(s3, done, [part(s3, done, 1, b"abc")])
    s3.abort_multipart_upload(Bucket=BUCKET, **aborted)
    for upload in (done, aborted, running | {"Key": "other"}):
        assert code_of(s3.upload_part, **upload, PartNumber=1, Body=b"x") == "NoSuchUpload"
        assert code_of(s3.list_parts, **upload) == "NoSuchUpload"
        assert code_of(s3.abort_multipart_upload, **upload) == "NoSuchUpload"
        parts = {"Parts": [{"PartNumber": 1, "ETag": '"e"'}]}
        assert code_of(s3.complete_multipart_upload, **upload, MultipartUpload=parts) == "NoSuchUpload"
    assert s3.objects == {"k": b"abc"}


def test_completing_on_condition_that_the_key_is_free_keeps_the_other_object_and_the_upload() -> None:
    s3 = MemoryS3()
    upload = begin(s3)
    parts = [part(s3, upload, 1, b"abc")]
    put(s3, "k", b"other")
    refused = code_of(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
    assert refused == "PreconditionFailed"
    assert s3.objects == {"k": b"other"}
    assert list(s3.uploads) == [upload["UploadId"]]


def test_an_upload_with_checksums_needs_them_with_every_part_and_at_its_end() -> None:
    s3 = MemoryS3()
    upload = begin(s3, "SHA256")
    assert code_of(s3.upload_part, **upload, PartNumber=1, Body=b"abc") == "InvalidRequest"
    sent = part(s3, upload, 1, b"abc", ChecksumSHA256=checksum_of(b"abc"))
    assert code_of(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": [sent]}) == "InvalidRequest"
    other = sent | {"ChecksumSHA256": checksum_of(b"abd")}
    assert code_of(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": [other]}) == "InvalidPart"
    complete(s3, upload, [sent | {"ChecksumSHA256": checksum_of(b"abc")}])


def test_parts_are_listed_after_a_marker_and_in_pages() -> None:
    s3 = MemoryS3()
    upload = begin(s3)
    assert s3.list_parts(Bucket=BUCKET, **upload) == {"IsTruncated": False}
    for number in (3, 1, 7):
        part(s3, upload, number, b"x" * number, ChecksumSHA256=checksum_of(b"x" * number))
    one = s3.list_parts(Bucket=BUCKET, **upload, PartNumberMarker=1, MaxParts=1)
    assert [(p["PartNumber"], p["Size"], p["ETag"], p["ChecksumSHA256"]) for p in one["Parts"]] == [
        (3, 3, etag_of(b"xxx"), checksum_of(b"xxx"))
    ]
    assert one["IsTruncated"]
    pages = list(s3.get_paginator("list_parts").paginate(Bucket=BUCKET, **upload, MaxParts=2))
    assert [[p["PartNumber"] for p in page["Parts"]] for page in pages] == [[1, 3], [7]]


# --- S3: presigned URLs --------------------------------------------------------------------------------------------


def test_a_presigned_url_answers_a_range_of_the_object_that_was_put() -> None:
    def get(**headers: str) -> tuple[int, bytes, str]:
        url = s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "a/b"}, ExpiresIn=60)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=names)) as answer:
                return answer.status, answer.read(), answer.headers["Content-Range"]
        except urllib.error.HTTPError as answer:
            return answer.code, b"", ""

    with RangeServer() as server:
        s3 = MemoryS3(server)
        assert get(Range="bytes=0-1") == (404, b"", "")
        etag = put(s3, "a/b", b"abcdef")
        assert get(Range="bytes=1-2", If_Match=etag) == (206, b"bc", "bytes 1-2/6")
        assert get(Range="bytes=4-9", If_Match=etag) == (206, b"ef", "bytes 4-5/6")
        assert get(Range="bytes=6-9", If_Match=etag) == (416, b"", "")
        assert get(Range="bytes=1-2", If_Match='"other"') == (412, b"", "")
        assert get() == (200, b"abcdef", None)


# --- SQS -----------------------------------------------------------------------------------------------------------


def test_a_message_is_hidden_until_its_timeout_passes_and_deleted_by_its_last_handle_only() -> None:
    sqs = MemorySqs()
    sqs.send_message(QueueUrl="q", MessageBody="m")
    (first,) = sqs.receive_message(QueueUrl="q")["Messages"]
    assert sqs.receive_message(QueueUrl="q") == {}
    sqs.time_out("q")
    (second,) = sqs.receive_message(QueueUrl="q")["Messages"]
    assert second["Attributes"]["ApproximateReceiveCount"] == "2"
    sqs.delete_message(QueueUrl="q", ReceiptHandle=first["ReceiptHandle"])
    assert sqs.bodies("q") == ["m"]
    sqs.delete_message(QueueUrl="q", ReceiptHandle=second["ReceiptHandle"])
    assert sqs.bodies("q") == []


def test_a_visibility_timeout_of_zero_shows_a_message_again() -> None:
    sqs = MemorySqs()
    sqs.send_message(QueueUrl="q", MessageBody="m")
    for seconds, visible in ((5, 0), (0, 1)):
        sqs.time_out("q")
        handle = sqs.receive_message(QueueUrl="q")["Messages"][0]["ReceiptHandle"]
        sqs.change_message_visibility(QueueUrl="q", ReceiptHandle=handle, VisibilityTimeout=seconds)
        assert len(sqs.receive_message(QueueUrl="q").get("Messages", [])) == visible


def test_a_request_takes_at_most_ten_messages() -> None:
    sqs = MemorySqs()
    entries = [{"Id": str(i), "MessageBody": str(i)} for i in range(BATCH + 1)]
    with pytest.raises(ClientError, match="TooManyEntriesInBatchRequest"):
        sqs.send_message_batch(QueueUrl="q", Entries=entries)
    sqs.send_message_batch(QueueUrl="q", Entries=entries[1:])
    sqs.send_message_batch(QueueUrl="q", Entries=entries[:1])
    taken = sqs.receive_message(QueueUrl="q", MaxNumberOfMessages=10)["Messages"]
    assert len({message["Body"] for message in taken}) == 10
    handles = [{"Id": str(i), "ReceiptHandle": message["ReceiptHandle"]} for i, message in enumerate(taken)]
    sqs.delete_message_batch(QueueUrl="q", Entries=handles)
    assert len(sqs.queue("q")) == 1


# --- processes that die --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "stored"), [(False, ["a"]), (True, ["a", "b"])])
def test_a_process_dies_at_a_call_and_nothing_that_it_calls_afterwards_arrives(after: bool, stored: list[str]) -> None:
    s3 = MemoryS3()
    mortal = Mortal(s3, Life(left=1, after=after))
    mortal.put_object(Bucket=BUCKET, Key="a", Body=b"")
    for key in "bc":
        with pytest.raises(Killed):
            mortal.put_object(Bucket=BUCKET, Key=key, Body=b"")
    assert list(s3.objects) == stored
