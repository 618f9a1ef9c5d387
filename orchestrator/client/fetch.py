"""A client's side, second half: a published global model becomes a file or a state_dict."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from lambdas.protocol.keys import global_key
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import DENIED, error_code, read_chunks
from orchestrator.errors import BadInput, OrchestratorError

if TYPE_CHECKING:
    pass
from orchestrator.aws.models import latest_model


@dataclass(frozen=True)
class Fetched:
    """What `fetch` stored; SHA-256 of the file's bytes."""

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
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Fetched:
    """Store a global model at `to`: the newest, or that of a round. The file appears whole or not at all.

    Raises:
        BadInput: nothing is published under that name, or the file cannot be written.
        OrchestratorError: the download ended early.
    """
    if round_id is None:
        try:
            latest = latest_model(bucket, model)
        except ClientError as error:
            raise _not_for_us(error, f"Model {model} has no global model yet") from error
        if latest is None:
            raise BadInput(f"Model {model} has no global model yet. `orchestrator rounds` lists the rounds.")
        round_id = latest.round_id
    key = global_key(model, round_id)
    try:
        head = bucket.s3.head_object(Bucket=bucket.name, Key=key)
    except ClientError as error:
        if error_code(error) == "NoSuchKey":
            raise BadInput(
                f"Round {round_id} has published no global model of {model}. `orchestrator status --round {round_id}` "
                "says where it stands."
            ) from error
        raise _not_for_us(error, f"Round {round_id} has published no global model of {model}") from error
    size = head["ContentLength"]
    chunks = read_chunks(bucket, key, 0, size, head["ETag"])
    return store(to, model, round_id, chunks, size, progress=progress)


def _not_for_us(error: ClientError, what: str) -> BadInput:
    """To who may not list the bucket, S3 says the same of what is missing and of what is forbidden; raises the rest."""
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
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Fetched:
    """Write a download of `size` bytes to a file, which appears whole or not at all.

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
            raise OrchestratorError(
                f"The download of {model} of round {round_id} ended after {done} of {size} bytes. Try again."
            )
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(to)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        if isinstance(error, BotoCoreError):
            raise OrchestratorError(
                f"The download of {model} of round {round_id} ended after {done} of {size} bytes ({error}). Try again."
            ) from error
        if isinstance(error, OSError):
            raise BadInput(f"Cannot write {to}: {error.strerror}. Choose another --to.") from error
        raise
    return Fetched(str(to), model, round_id, size, digest.hexdigest())
