"""Large objects: in parts, whole or not at all, once."""

from __future__ import annotations

import io
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lambdas.storage.bucket import Bucket
from orchestrator.aws import s3
from orchestrator.aws.clients import AwsClients, connect, make_client
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.s3 import create_large_object, delete_objects
from orchestrator.errors import OrchestratorError
from tests.support.s3 import MemoryS3

MIB = 1024**2


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    monkeypatch.setattr(s3, "MULTIPART_ABOVE", 6 * MIB)


def _content(seed: int) -> bytes:
    return bytes([seed]) * (13 * MIB) + b"the end"


@pytest.mark.parametrize("url", ["https://localstack.example.com", "http://127.0.0.1:4599"])
def test_clients_ask_the_deployments_own_endpoint_whatever_the_environment_names(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    connected = connect("eu-west-1", url)
    for client in (connected.s3, connected.sqs, make_client("lambda", "eu-west-1", url)):
        assert client.meta.endpoint_url == url
        assert client.meta.region_name == "eu-west-1"


def test_a_large_object_goes_up_in_parts_and_comes_back_as_it_was(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    bucket, content = lanes_without_functions.bucket, _content(1)
    assert create_large_object(aws.bucket(bucket), "large", io.BytesIO(content), len(content))
    stored = aws.s3.get_object(Bucket=bucket, Key="large")
    assert stored["Body"].read() == content
    assert stored["ETag"].endswith('-3"'), "three parts"


def test_a_large_object_is_written_once_and_the_second_try_leaves_nothing_behind(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    bucket = lanes_without_functions.bucket
    assert create_large_object(aws.bucket(bucket), "once", io.BytesIO(_content(1)), len(_content(1)))
    assert not create_large_object(aws.bucket(bucket), "once", io.BytesIO(_content(2)), len(_content(2)))
    assert aws.s3.get_object(Bucket=bucket, Key="once")["Body"].read() == _content(1)
    assert "Uploads" not in aws.s3.list_multipart_uploads(Bucket=bucket)


def test_an_upload_that_breaks_leaves_nothing_behind(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 6 * MIB:
                raise OSError("the disk is gone")
            return super().read(size)

    bucket = lanes_without_functions.bucket
    with pytest.raises(OSError, match="the disk is gone"):
        create_large_object(aws.bucket(bucket), "broken", Breaks(_content(1)), len(_content(1)))
    assert "Uploads" not in aws.s3.list_multipart_uploads(Bucket=bucket)
    assert "Contents" not in aws.s3.list_objects_v2(Bucket=bucket)


def test_an_upload_in_parts_whose_answer_was_lost_is_for_the_caller_to_look_at(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, content = lanes_without_functions.bucket, _content(1)
    complete = aws.s3.complete_multipart_upload

    def twice(**arguments: Any) -> Any:
        """What boto3 does where the answer of the first request is lost."""
        complete(**arguments)
        raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")

    monkeypatch.setattr(aws.s3, "complete_multipart_upload", twice)
    assert not create_large_object(aws.bucket(bucket), "lost", io.BytesIO(content), len(content))
    assert aws.s3.get_object(Bucket=bucket, Key="lost")["Body"].read() == content


class RefusingS3(MemoryS3):
    """Refuses the last key of each of the first `times` requests, in an answer of status 200 as S3 does."""

    def __init__(self, times: int) -> None:
        super().__init__(objects={"a": b"", "b": b""})
        self.times = times

    def delete_objects(self, *, Bucket: str, Delete: Any) -> Any:  # noqa: N803 - boto3's names
        refused = Delete["Objects"][-1:] if len(self.calls) < self.times else []
        super().delete_objects(
            Bucket=Bucket, Delete={"Objects": [item for item in Delete["Objects"] if item not in refused]}
        )
        return {"Errors": [{"Key": item["Key"], "Code": "SlowDown"} for item in refused]}


def test_objects_that_were_not_deleted_are_deleted_again_or_named() -> None:
    s3: Any = RefusingS3(times=1)
    delete_objects(Bucket(s3, "bucket"), ["a", "b"])
    assert s3.objects == {}
    s3 = RefusingS3(times=2)
    with pytest.raises(OrchestratorError, match=r"did not delete 1 objects, s3://bucket/b first \(SlowDown\)"):
        delete_objects(Bucket(s3, "bucket"), ["a", "b"])
    assert list(s3.objects) == ["b"]
