"""Where shards go: parts and objects, and what happens when storing fails."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from botocore.exceptions import EndpointConnectionError

from lambdas.protocol.errors import FederationError, InvalidContract, StorageUnavailable, Superseded
from lambdas.protocol.keys import global_key, shard_key
from lambdas.protocol.limits import MAX_PART_BYTES, MIN_PART_BYTES
from lambdas.protocol.manifest import Output
from lambdas.protocol.safetensors import global_header
from lambdas.protocol.tensor_table import shard_bounds
from lambdas.storage import shards
from lambdas.storage.bucket import Bucket
from lambdas.storage.shards import ShardSink, find_shard
from tests.support.aws import client_error
from tests.support.manifests import BUCKET, MODEL, ROUND, Update, manifest_of, table_of
from tests.support.s3 import MemoryS3, Upload

KEY = global_key(MODEL, ROUND)
PARTS = Output("multipart", KEY, "upload-1")

pytestmark = pytest.mark.usefixtures("tiny_parts")


def uploads() -> dict[str, Upload]:
    return {"upload-1": Upload(KEY, "SHA256")}


def manifest(output: Output | None = None, shards: int = 3):
    return manifest_of(table_of(("F32", 5), ("U8", 7)), [Update(b"\0" * 27)], shards=shards, output=output)


def stored(s3: MemoryS3, round_manifest, shard: int, data: bytes):
    sink = ShardSink(Bucket(s3, BUCKET), round_manifest, shard)
    try:
        for at in range(0, len(data), 3):
            sink.write(memoryview(data[at : at + 3]))
        return sink.finish()
    finally:
        sink.close()


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_a_shard_becomes_the_part_that_the_manifest_determines(shard) -> None:
    s3, m = MemoryS3(uploads=uploads()), manifest(PARTS)
    data = bytes(range(m.shard_nbytes(shard)))
    expected = (global_header(m.table) if shard == 0 else b"") + data

    written = stored(s3, m, shard, data)

    assert s3.uploads["upload-1"].parts == {shard + 1: expected}
    assert written.sha256 == hashlib.sha256(expected).hexdigest()
    assert written.nbytes == len(expected)
    assert written.etag == f'"{hashlib.md5(expected).hexdigest()}"'


@pytest.mark.parametrize("shard", [0, 2])
def test_small_shards_become_objects_without_the_file_header(shard) -> None:
    s3, m = MemoryS3(), manifest()
    data = bytes(range(m.shard_nbytes(shard)))
    written = stored(s3, m, shard, data)
    assert s3.objects == {shard_key(ROUND, shard, 3): data}
    assert written.nbytes == len(data)


def test_storing_twice_leaves_one_part() -> None:
    s3, m = MemoryS3(uploads=uploads()), manifest(PARTS)
    data = bytes(m.shard_nbytes(1))
    assert stored(s3, m, 1, data) == stored(s3, m, 1, data)
    assert len(s3.uploads["upload-1"].parts) == 1


@pytest.mark.parametrize("missing", [-1, 1])
def test_a_shard_of_the_wrong_length_is_never_stored(missing) -> None:
    s3, m = MemoryS3(), manifest()
    with pytest.raises(FederationError, match=r"Storing shard 1 of 3: \d+ bytes averaged, the manifest says"):
        stored(s3, m, 1, bytes(m.shard_nbytes(1) + missing))
    assert s3.calls == []


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (client_error("NoSuchUpload"), Superseded),
        (client_error("SlowDown"), StorageUnavailable),
        (EndpointConnectionError(endpoint_url="https://s3"), StorageUnavailable),
    ],
)
def test_failures_of_s3_are_told_apart(failure, error) -> None:
    s3, m = MemoryS3(uploads=uploads(), fail=[failure]), manifest(PARTS)
    with pytest.raises(error, match="Storing shard 1 of 3"):
        stored(s3, m, 1, bytes(m.shard_nbytes(1)))
    s3.fail = [failure]
    with pytest.raises(error, match="Looking for shard 1 of 3"):
        find_shard(Bucket(s3, BUCKET), m, 1)


@pytest.mark.parametrize("output", [None, PARTS])
@pytest.mark.parametrize("shard", [0, 1, 2])
def test_a_stored_shard_is_found_and_no_other(output, shard) -> None:
    s3, m = MemoryS3(uploads=uploads()), manifest(output)
    assert find_shard(Bucket(s3, BUCKET), m, shard) is None
    written = stored(s3, m, shard, bytes(m.shard_nbytes(shard)))
    found = find_shard(Bucket(s3, BUCKET), m, shard)
    assert found is not None
    assert (found.etag, found.nbytes, found.sha256) == (written.etag, written.nbytes, written.sha256)
    for other in {0, 1, 2} - {shard}:
        assert find_shard(Bucket(s3, BUCKET), m, other) is None


@pytest.mark.parametrize("output", [None, PARTS])
def test_a_shard_of_another_length_is_not_taken_for_this_one(output) -> None:
    s3, m = MemoryS3(uploads=uploads()), manifest(output)
    s3.objects[shard_key(ROUND, 1, 3)] = b"short"
    s3.uploads["upload-1"].parts[2] = b"short"
    assert find_shard(Bucket(s3, BUCKET), m, 1) is None


# --- S3's limits on parts ------------------------------------------------------------------------------------------


def sized(values: int, shards: int, output: Output | None = PARTS):
    """A round of that many bytes; nobody has them."""
    table = table_of(("U8", values))
    return dataclasses.replace(manifest(output), table=table, bounds=shard_bounds(table, shards))


@pytest.mark.parametrize(
    ("values", "output", "shard", "refusal"),
    [
        (MIN_PART_BYTES * 3, PARTS, 1, None),
        (MIN_PART_BYTES * 3 - 3, PARTS, 1, "less than S3's smallest part, 5242880, and only the last part"),
        (MIN_PART_BYTES * 3 - 3, PARTS, 2, None),
        (MIN_PART_BYTES * 3 - 3, PARTS, 0, None),  # the file's header makes up for it
        (30, None, 1, None),  # objects may be small
        (MAX_PART_BYTES * 3, PARTS, 1, None),
        (MAX_PART_BYTES * 3 + 3, PARTS, 2, "more than the limit of a part, 5368709120; the round needs more shards"),
        (MAX_PART_BYTES * 3, PARTS, 0, "more than the limit of a part"),
        (MAX_PART_BYTES * 3 + 3, None, 1, "more than the limit of a part"),
    ],
)
def test_a_shard_that_s3_would_not_take_is_refused_before_anything_is_averaged(
    values, output, shard, refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MIN_PART_BYTES", MIN_PART_BYTES)
    m = sized(values, 3, output)
    s3 = MemoryS3(uploads=uploads())
    if refusal is None:
        ShardSink(Bucket(s3, BUCKET), m, shard).close()
    else:
        with pytest.raises(
            InvalidContract, match=rf"Storing shard {shard} of 3 of round {ROUND}: \d+ bytes are {refusal}"
        ):
            ShardSink(Bucket(s3, BUCKET), m, shard)
    assert s3.calls == []


def test_the_shard_count_is_part_of_an_objects_name() -> None:
    s3 = MemoryS3()
    stored(s3, manifest(shards=1), 0, bytes(27))
    assert find_shard(Bucket(s3, BUCKET), manifest(shards=3), 0) is None
