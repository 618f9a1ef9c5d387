"""Downloads a published global model into a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from lambdas.protocol.keys import global_key
from lambdas.storage.bucket import Bucket
from orchestrator.aws.models import latest_model
from orchestrator.aws.s3 import DENIED, error_code, read_chunks
from orchestrator.errors import BadInput, OrchestratorError

# Called with the bytes downloaded so far and the bytes in total.
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Fetched:
    """A downloaded global model.

    Attributes:
        sha256: of the file's bytes.
    """

    path: str
    model: str
    round_id: str
    nbytes: int
    sha256: str


def fetch(
    bucket: Bucket,
    model: str,
    to: Path,
    *,
    round_id: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Fetched:
    """Store a global model at `to`: the newest, or that of a round. The file appears complete or not at all.

    Raises:
        BadInput: no such global model is published, or the file cannot be written.
        OrchestratorError: the download ended early.
    """
    if round_id is None:
        try:
            latest = latest_model(bucket, model)
        except ClientError as error:
            raise _not_allowed(error, f"Model {model} has no global model yet") from error
        if latest is None:
            raise BadInput(f"Model {model} has no global model yet. `orchestrator rounds` lists the rounds.")
        round_id = latest.round_id
    key = global_key(model, round_id)
    try:
        head = bucket.s3.head_object(Bucket=bucket.name, Key=key)
    except ClientError as error:
        if error_code(error) == "NoSuchKey":
            raise BadInput(
                f"Round {round_id} has published no global model of {model}. Run `orchestrator status --round "
                f"{round_id}` to see its state."
            ) from error
        raise _not_allowed(error, f"Round {round_id} has published no global model of {model}") from error
    size = head["ContentLength"]
    chunks = read_chunks(bucket, key, 0, size, head["ETag"])
    return store(to, model, round_id, chunks, size, progress=progress)


def _not_allowed(error: ClientError, what: str) -> BadInput:
    """The error for a refused read. Re-raises every other error.

    Without permission to list the bucket, S3 gives the same response for a missing and a forbidden object.
    """
    if error_code(error) not in DENIED:
        raise error
    return BadInput(f"{what}, or you may not read it.")


def store(
    to: Path,
    model: str,
    round_id: str,
    chunks: Iterable[bytes],
    size: int,
    *,
    progress: Progress = lambda done, total: None,
) -> Fetched:
    """Write a download of `size` bytes to a file, which appears complete or not at all.

    Raises:
        BadInput: the file cannot be written.
        OrchestratorError: the download ended early.
    """
    done, digest = 0, hashlib.sha256()
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{to.name}-", dir=to.parent)
    except OSError as error:
        raise BadInput(f"Cannot write to {to.parent}: {error.strerror}. Choose another --to.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, size)
        if done != size:
            raise OrchestratorError(_ended_early(model, round_id, done, size))
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(to)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        if isinstance(error, OSError):
            raise BadInput(f"Cannot write {to}: {error.strerror}. Choose another --to.") from error
        if isinstance(error, BotoCoreError):
            raise OrchestratorError(_ended_early(model, round_id, done, size, f" ({error})")) from error
        raise
    return Fetched(str(to), model, round_id, size, digest.hexdigest())


def _ended_early(model: str, round_id: str, done: int, size: int, why: str = "") -> str:
    return f"The download of {model} of round {round_id} ended after {done} of {size} bytes{why}. Try again."
