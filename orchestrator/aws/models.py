"""Global models in S3: the pointer to the newest one, and the headers of stored files."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError

from lambdas.protocol.errors import InvalidTensorFile
from lambdas.protocol.keys import latest_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.safetensors import header_length, parse_header
from lambdas.protocol.tensor_table import TensorTable
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import error_code, get_bytes, read_object
from orchestrator.errors import OrchestratorError


def latest_model(bucket: Bucket, model: str) -> LatestModel | None:
    """A model's newest global model, None before the first round has published."""
    found = read_object(bucket, latest_key(model))
    return LatestModel.from_bytes(found[0]) if found else None


def latest_table(bucket: Bucket, model: str) -> tuple[str, TensorTable] | None:
    """Round and tensor table of a model's newest global model; None before the first."""
    latest = latest_model(bucket, model)
    if latest is None:
        return None
    try:
        raw = read_header(bucket, latest.key, latest.size)
        return latest.round_id, parse_header(raw, latest.size).table
    except (InvalidTensorFile, ClientError) as error:
        if isinstance(error, ClientError) and error_code(error) not in ("NoSuchKey", "InvalidRange"):
            raise
        raise OrchestratorError(
            f"The newest global model of {model}, s3://{bucket.name}/{latest.key}, is not the one that round "
            f"{latest.round_id} published ({error}). Run `orchestrator verify --round {latest.round_id}` to see what "
            "was changed."
        ) from error


def read_header(bucket: Bucket, key: str, size: int, *, etag: str | None = None, guess: int = 64 * 1024) -> bytes:
    """The safetensors header of an object (without its 8-byte length), with one GET if `guess` bytes contain it.

    Raises:
        InvalidTensorFile: the object is not a valid safetensors file.
        ClientError: S3 refused the request; 412 if the object has another ETag.
    """
    match: Any = {"IfMatch": etag} if etag else {}
    if size < 8:
        header_length(b"", size)
    first, _ = get_bytes(bucket, Key=key, Range=f"bytes=0-{min(size, guess) - 1}", **match)
    length = header_length(first, size)
    if len(first) < 8 + length:
        rest, _ = get_bytes(bucket, Key=key, Range=f"bytes={len(first)}-{7 + length}", **match)
        first += rest
    return first[8 : 8 + length]
