"""A published global model becomes a file, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from lambdas.protocol.errors import InvalidContract, InvalidName
from lambdas.protocol.keys import global_key, latest_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.models import latest_model
from orchestrator.client.fetch import fetch
from orchestrator.errors import BadInput, OrchestratorError
from tests.support.s3 import MemoryS3


@pytest.fixture
def published(aws: AwsClients, lanes_without_functions: Deployment) -> Deployment:
    """Two rounds of a model are published, r-2 is the newest."""
    for round_id in ("r-1", "r-2"):
        key = global_key("digits", round_id)
        body = round_id.encode() * 1_000_000
        etag = aws.s3.put_object(Bucket=lanes_without_functions.bucket, Key=key, Body=body)["ETag"]
        latest = LatestModel("digits", round_id, key, etag, len(body), "0" * 64, 1.0, 2.0)
        aws.s3.put_object(
            Bucket=lanes_without_functions.bucket, Key=latest_key("digits"), Body=latest.to_bytes()
        )  # fmt: skip
    return lanes_without_functions


def test_the_newest_global_model_is_fetched_by_default(aws: AwsClients, published: Deployment, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    result = fetch(
        aws.bucket(published.bucket),
        "digits",
        tmp_path / "m",
        progress=lambda done, total: told.append((done, total)),
    )
    body = b"r-2" * 1_000_000
    assert (tmp_path / "m").read_bytes() == body
    assert (result.round_id, result.nbytes, result.sha256) == ("r-2", len(body), hashlib.sha256(body).hexdigest())
    assert told[-1] == (len(body), len(body))


def test_the_global_model_of_a_round_is_fetched_by_its_id(
    aws: AwsClients, published: Deployment, tmp_path: Path
) -> None:
    assert fetch(aws.bucket(published.bucket), "digits", tmp_path / "m", round_id="r-1").round_id == "r-1"
    assert (tmp_path / "m").read_bytes() == b"r-1" * 1_000_000


def test_a_file_that_is_there_is_replaced_and_has_ordinary_permissions(
    aws: AwsClients, published: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(b"old")
    before = os.umask(0o027)
    try:
        fetch(aws.bucket(published.bucket), "digits", tmp_path / "m")
        assert os.umask(0o027) == 0o027, "the process's own umask is as it was"
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_size == 3_000_000
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640


def test_a_model_without_a_global_model_is_an_error_with_the_next_step(
    aws: AwsClients, published: Deployment, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"Model vgg has no global model yet. `orchestrator rounds`"):
        fetch(aws.bucket(published.bucket), "vgg", tmp_path / "m")
    assert latest_model(aws.bucket(published.bucket), "vgg") is None
    with pytest.raises(
        BadInput, match=r"Round r-9 has published no global model of digits. Run `orchestrator status --round r-9`"
    ):
        fetch(aws.bucket(published.bucket), "digits", tmp_path / "m", round_id="r-9")
    assert list(tmp_path.iterdir()) == []


def test_names_that_cannot_be_keys_are_refused(aws: AwsClients, published: Deployment, tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        fetch(aws.bucket(published.bucket), "../digits", tmp_path / "m")
    with pytest.raises(InvalidName):
        fetch(aws.bucket(published.bucket), "digits", tmp_path / "m", round_id="a/b")


def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(
    aws: AwsClients, published: Deployment, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"Cannot write to .*missing: No such file.*Choose another --to"):
        fetch(aws.bucket(published.bucket), "digits", tmp_path / "missing" / "m")
    (tmp_path / "directory").mkdir()
    with pytest.raises(BadInput, match=r"Cannot write .*directory: Is a directory.*Choose another --to"):
        fetch(aws.bucket(published.bucket), "digits", tmp_path / "directory")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


class ShortS3(MemoryS3):
    """A model of 8 bytes, of which every answer has only so many as `lengths` say, and at last none."""

    def __init__(self, *lengths: int) -> None:
        super().__init__(objects={global_key("digits", "r-1"): b"abcdefgh"})
        self.lengths = list(lengths)
        self.ranges: list[str] = []

    def get_object(self, *, Range: str, **request: Any) -> Any:  # noqa: N803 - boto3's name
        self.ranges.append(Range)
        body = super().get_object(Range=Range, **request)["Body"].read()
        return {"Body": StreamingBody(io.BytesIO(body[: self.lengths.pop(0) if self.lengths else 0]), None)}


def test_a_download_that_is_cut_short_continues_from_the_byte_reached(tmp_path: Path) -> None:
    short: Any = ShortS3(4, 2, 2)
    fetch(Bucket(short, "b"), "digits", tmp_path / "m", round_id="r-1")
    assert (tmp_path / "m").read_bytes() == b"abcdefgh"
    assert short.ranges == ["bytes=0-7", "bytes=4-7", "bytes=6-7"]


def test_a_download_that_gets_no_further_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "m").write_bytes(b"old")
    short: Any = ShortS3(4)
    with pytest.raises(OrchestratorError, match=r"digits of round r-1 ended after 4 of 8 bytes"):
        fetch(Bucket(short, "b"), "digits", tmp_path / "m", round_id="r-1")
    assert len(short.ranges) == 5
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("m", b"old")]


def test_an_interrupted_download_leaves_the_old_file(aws: AwsClients, published: Deployment, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"old")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(aws.bucket(published.bucket), "digits", tmp_path / "m", progress=interrupt)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("m", b"old")]


def test_a_damaged_pointer_is_named(aws: AwsClients, published: Deployment, tmp_path: Path) -> None:
    aws.s3.put_object(Bucket=published.bucket, Key=latest_key("digits"), Body=b"{}")
    with pytest.raises(InvalidContract, match="Pointer to the latest model: schema is None"):
        fetch(aws.bucket(published.bucket), "digits", tmp_path / "m")


class Refusing:
    """An S3 that answers every request with one error."""

    def __init__(self, code: str) -> None:
        self.code = code

    def head_object(self, **_: Any) -> Any:
        raise ClientError({"Error": {"Code": self.code, "Message": "no"}}, "HeadObject")

    get_object = head_object


def test_another_refusal_of_s3_is_not_taken_for_a_missing_model(tmp_path: Path) -> None:
    s3: Any = Refusing("SlowDown")
    with pytest.raises(ClientError, match="SlowDown"):
        fetch(Bucket(s3, "b"), "digits", tmp_path / "m", round_id="r-1")


@pytest.mark.parametrize(
    ("round_id", "what"),
    [(None, "Model digits has no global model yet"), ("r-1", "Round r-1 has published no global model of digits")],
)
def test_who_may_not_list_the_bucket_is_told_that_missing_and_forbidden_look_alike(
    tmp_path: Path, round_id: str | None, what: str
) -> None:
    for code in ("AccessDenied", "403"):
        s3: Any = Refusing(code)
        with pytest.raises(BadInput, match=f"{what}, or you may not read it"):
            fetch(Bucket(s3, "b"), "digits", tmp_path / "m", round_id=round_id)
