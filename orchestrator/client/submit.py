"""Submits an update to a round: writes one object, once, with AWS credentials.

The object does not depend on the number of shards.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace

from botocore.exceptions import ClientError

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import TensorTableMismatch
from lambdas.protocol.keys import check_name, manifest_key, update_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.safetensors import check_same_table
from lambdas.protocol.tensor_table import WIRE_DTYPES, TensorTable
from lambdas.storage.bucket import Bucket
from orchestrator.aws.models import latest_table
from orchestrator.aws.s3 import DENIED, create_large_object, error_code, get_bytes, read_object
from orchestrator.client.sources import Tensors
from orchestrator.client.update_file import WrittenUpdate, in_file_order, write_update
from orchestrator.client.wire import WIRE_NAMES
from orchestrator.errors import BadInput, RoundConflict
from orchestrator.rounds.request import read_record


@dataclass(frozen=True)
class Submitted:
    """A stored update.

    Attributes:
        header_sha256: the client's receipt. It covers the tensor table, the example count and `data_sha256`. The
            round's manifest and report repeat it, and `orchestrator verify` checks it.
        created: False if the identical update was stored already.
    """

    key: str
    nbytes: int
    header_sha256: str
    data_sha256: str
    num_examples: int
    created: bool


def submit(
    bucket: Bucket,
    round_id: str,
    client: str,
    tensors: Tensors,
    num_examples: int,
    *,
    wire: str | None = None,
) -> Submitted:
    """Store a client's update for a round, once. Submitting the identical update again changes nothing.

    Args:
        wire: `BF16` or `F16` to store float32 tensors in that dtype.

    Raises:
        BadInput, InvalidName: an argument cannot be used.
        RoundConflict: the client has submitted another update, or the round is closed.
        TensorTableMismatch: the model that the round continues has other tensors.
    """
    key = update_key(round_id, client)
    check_name("round", round_id)
    if wire is not None and wire not in WIRE_DTYPES:
        raise BadInput(f"Unknown wire dtype {wire!r}; expected one of {', '.join(WIRE_NAMES)}.")
    with tempfile.TemporaryFile(prefix="update-") as file:
        update = write_update(tensors, num_examples, file, wire=wire)
        submitted = Submitted(
            key, update.nbytes, sha256_hex(update.header), update.data_sha256, num_examples, created=False
        )
        pinned = _pinned_clients(bucket, round_id)
        if pinned is not None:
            if client in pinned and _is_stored(bucket, key, update):
                return submitted
            raise RoundConflict(
                f"Round {round_id} is closed: its updates are pinned. "
                f"Submit client {client}'s update to the next round."
            )
        _check_against_latest(bucket, round_id, client, tensors.table)
        file.seek(0)
        created = create_large_object(bucket, key, file, update.nbytes)
    if not created and not _is_stored(bucket, key, update):
        raise RoundConflict(
            f"Client {client} has already submitted another update to round {round_id}. Updates are written once: "
            "submit to another round, or under another client id."
        )
    pinned = _pinned_clients(bucket, round_id)
    if pinned is not None and client not in pinned:
        raise RoundConflict(
            f"Round {round_id} was closed while client {client}'s update was uploaded, and continues without it. "
            "Submit it to the next round."
        )
    return replace(submitted, created=created)


def _pinned_clients(bucket: Bucket, round_id: str) -> set[str] | None:
    """The clients whose updates a closed round has; None if it is open, or if reading that is not allowed."""
    try:
        found = read_object(bucket, manifest_key(round_id))
    except ClientError as error:
        if error_code(error) in DENIED:
            return None
        raise
    return {p.client for p in RoundManifest.from_bytes(found[0]).participants} if found else None


def _is_stored(bucket: Bucket, key: str, update: WrittenUpdate) -> bool:
    """Whether this update is stored: its header is compared, which contains the SHA-256 of the values."""
    try:
        stored, _ = get_bytes(bucket, Key=key, Range=f"bytes=0-{len(update.header) - 1}")
    except ClientError as error:
        if error_code(error) == "NoSuchKey":
            return False
        raise
    return stored == update.header


def _check_against_latest(bucket: Bucket, round_id: str, client: str, table: TensorTable) -> None:
    """Check the tensors before the upload, so that the client learns early; `start-round` checks every update."""
    try:
        record = read_record(bucket, round_id)
        expected = latest_table(bucket, record.model) if record else None
    except ClientError as error:
        # Without permission to list the bucket, S3 gives the same response for a missing and a forbidden object.
        if error_code(error) in DENIED:
            return
        raise
    if expected is not None:
        source = f"the newest global model, of round {expected[0]}"
        try:
            check_same_table(in_file_order(table), expected[1], source=source)
        except TensorTableMismatch as error:
            raise TensorTableMismatch(f"client {client}: {error}.", client=client) from error
