"""Makes invitations: presigned requests for one update of exactly one size, and for the global model.

Presigning sends no request to S3: an invitation works as long as the credentials that signed it and its own lifetime
last. Only an update that is uploaded in parts needs a request, which creates a multipart upload. The bucket's lifecycle
rule deletes the upload if it is not used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lambdas.protocol.keys import check_name, global_key, manifest_key, update_key
from lambdas.protocol.limits import MAX_EXAMPLES, MAX_PART_BYTES
from lambdas.protocol.tensor_table import TensorTable
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import MULTIPART_ABOVE, PART_BYTES
from orchestrator.aws.models import latest_table
from orchestrator.aws.s3 import exists
from orchestrator.client.invitation import Invitation, Parts
from orchestrator.client.signing import credentials_end
from orchestrator.client.update_file import in_file_order, stored_table, update_header
from orchestrator.errors import BadInput, RoundConflict
from orchestrator.rounds.request import RoundRecord, read_record

# The longest lifetime of Signature V4 (Amazon S3 user guide, "Sharing objects with presigned URLs").
MAX_EXPIRES_S = 7 * 24 * 3600
# Updates that other tools or later releases write may have slightly longer headers.
_HEADER_SPARE_BYTES = 256
# The header's size if only the model's bytes are known: this, plus a thousandth of the model.
_HEADER_GUESS_BYTES = 64 * 1024
_MOST_PARTS = 32


@dataclass(frozen=True)
class UpdateSize:
    """Bytes of an update's file, and those of them in front of the values."""

    nbytes: int
    header_bytes: int


def update_size(table: TensorTable, wire: str | None = None) -> UpdateSize:
    """Size of every update of a model. Headers are padded to their greatest length."""
    ordered = in_file_order(table)
    stored = stored_table(ordered, wire)
    header = len(update_header(ordered, stored, MAX_EXAMPLES, "0" * 64)) + _HEADER_SPARE_BYTES
    return UpdateSize(header + stored.nbytes, header)


def size_of_bytes(model_bytes: int) -> UpdateSize:
    """The size of updates of which only the bytes of the values are known."""
    header = _HEADER_GUESS_BYTES + -(-model_bytes // 8000) * 8
    return UpdateSize(header + model_bytes, header)


@dataclass(frozen=True)
class Inviting:
    """What all invitations to a round have in common.

    Attributes:
        tensors_sha256, base_round: of the newest global model; None before the first round.
        expect_clients: the clients that the round expects; empty if any client may take part.
    """

    round_id: str
    model: str
    wire: str | None
    size: UpdateSize
    tensors_sha256: str | None
    base_round: str | None
    expect_clients: tuple[str, ...]


def prepare(
    bucket: Bucket,
    round_id: str,
    *,
    model: str | None = None,
    wire: str | None = None,
    table: TensorTable | None = None,
    model_bytes: int | None = None,
) -> Inviting:
    """Look up what the invitations to a round have in common.

    Args:
        model: the model's name; required if the round is not open yet.
        table: the model's tensors; required in its first round, unless `model_bytes` is given.
        model_bytes: bytes of the model's values as they are stored, if `table` is not known.

    Raises:
        BadInput: the model, or the size of an update, is not known.
        RoundConflict: the round is closed, or is for another model.
    """
    check_name("round", round_id)
    record = read_record(bucket, round_id)
    name = _model_of(record, round_id, model)
    if exists(bucket, manifest_key(round_id)):
        raise RoundConflict(f"Round {round_id} is closed: its updates are pinned. Invite to the next round.")
    latest = latest_table(bucket, name)
    if latest is not None:
        table = latest[1]
    if table is not None:
        size, digest = update_size(table, wire), in_file_order(table).sha256
    elif model_bytes is not None:
        size, digest = size_of_bytes(model_bytes), None
    else:
        raise BadInput(
            f"Model {name} has no global model yet, so the size of an update is not known. Add --like FILE with the "
            "model's tensors, or --model-bytes."
        )
    expected = (record.request.expect_clients or ()) if record else ()
    return Inviting(round_id, name, wire, size, digest, latest[0] if latest else None, expected)


def _model_of(record: RoundRecord | None, round_id: str, model: str | None) -> str:
    """The model of a round: that of its record, and before it is opened the given one."""
    opened = record.model if record else None
    if opened is None and model is None:
        raise BadInput(f"Round {round_id} is not open yet, so its model is not known. Add --model.")
    if opened is not None and model is not None and model != opened:
        raise RoundConflict(f"Round {round_id} is for model {opened}, not for {model}. Use --model {opened}.")
    return check_name("model", opened or model or "")


def invite(bucket: Bucket, inviting: Inviting, client: str, expires_s: float) -> Invitation:
    """Make one client's invitation.

    Raises:
        InvalidName: the client id cannot be part of a key.
        BadInput: presigned requests cannot live that long, or the round does not expect the client.
    """
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise BadInput(
            f"An invitation lives from 1 second to {MAX_EXPIRES_S // 86400} days, not {expires_s:.0f} s. "
            "Choose another --expires."
        )
    key = update_key(inviting.round_id, client)
    if inviting.expect_clients and client not in inviting.expect_clients:
        raise BadInput(
            f"Client {client} is not among the {len(inviting.expect_clients)} clients that round {inviting.round_id} "
            "expects. Add it with --expect-clients and --replace-options, or invite it to another round."
        )
    sign = partial(_sign, bucket, int(expires_s))
    now, size = time.time(), inviting.size
    in_parts = size.nbytes > MULTIPART_ABOVE
    base = global_key(inviting.model, inviting.base_round) if inviting.base_round else None
    return Invitation(
        round_id=inviting.round_id,
        client=client,
        model=inviting.model,
        issued_at=round(now, 3),
        expires_at=round(min(now + int(expires_s), credentials_end(bucket.s3) or math.inf), 3),
        size=size.nbytes,
        header_bytes=size.header_bytes,
        stored_url=sign("get_object", key, Range=f"bytes=0-{size.header_bytes - 1}"),
        closed_url=sign("head_object", manifest_key(inviting.round_id)),
        result_url=sign("get_object", global_key(inviting.model, inviting.round_id)),
        wire=inviting.wire,
        tensors_sha256=inviting.tensors_sha256,
        put_url=None if in_parts else sign("put_object", key, ContentLength=size.nbytes, IfNoneMatch="*"),
        parts=_in_parts(bucket, sign, key, size.nbytes) if in_parts else None,
        base_round=inviting.base_round,
        base_url=sign("get_object", base) if base else None,
    )


def _sign(bucket: Bucket, expires_s: int, operation: str, key: str, **parameters: Any) -> str:
    return bucket.s3.generate_presigned_url(
        operation, Params={"Bucket": bucket.name, "Key": key, **parameters}, ExpiresIn=expires_s
    )


def _in_parts(bucket: Bucket, sign: Callable[..., str], key: str, size: int) -> Parts:
    part_bytes = min(max(PART_BYTES, -(-size // _MOST_PARTS)), MAX_PART_BYTES)
    upload = bucket.s3.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"]
    lengths = [min(part_bytes, size - start) for start in range(0, size, part_bytes)]
    return Parts(
        part_bytes=part_bytes,
        urls=tuple(
            sign("upload_part", key, UploadId=upload, PartNumber=number, ContentLength=length)
            for number, length in enumerate(lengths, 1)
        ),
        complete_url=sign("complete_multipart_upload", key, UploadId=upload, IfNoneMatch="*"),
        abort_url=sign("abort_multipart_upload", key, UploadId=upload),
    )
