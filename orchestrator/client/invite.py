"""Making invitations: presigned requests for exactly one update, its size included, and for the global model.

Presigning asks S3 nothing: an invitation is as good as the credentials that signed it, for as long as both last. Only
an update that goes up in parts has something stored for it, an empty multipart upload, which the bucket's lifecycle
rule clears away where nobody uses it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lambdas.protocol.keys import check_name, global_key, manifest_key, update_key
from lambdas.protocol.limits import MAX_EXAMPLES, MAX_PART_BYTES
from lambdas.protocol.safetensors import canonical_order
from lambdas.protocol.tensor_table import TensorTable
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import MULTIPART_ABOVE, PART_BYTES
from orchestrator.aws.models import latest_table
from orchestrator.aws.s3 import exists
from orchestrator.client.invitation import Invitation, Parts
from orchestrator.client.update_file import stored_table, update_header
from orchestrator.errors import BadInput, RoundConflict
from orchestrator.rounds.request import read_record

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Signature V4 knows no longer life (Amazon S3 user guide, "Sharing objects with presigned URLs").
MAX_EXPIRES_S = 7 * 24 * 3600
# The header of an update that other tools write, or a later release, may say a little more than ours.
_HEADER_SPARE_BYTES = 256
# What is allowed for a header where only the model's bytes are known: 64 KiB, and a thousandth of the model.
_HEADER_GUESS_BYTES = 64 * 1024
_MOST_PARTS = 32


@dataclass(frozen=True)
class UpdateSize:
    """How long an update's file is, and how much of it stands in front of the values; bytes."""

    nbytes: int
    header_bytes: int


def update_size(table: TensorTable, wire: str | None = None) -> UpdateSize:
    """Size of every update of a model: the header is padded to the longest that it can be."""
    ordered = TensorTable(tuple(table.tensors[i] for i in canonical_order(table)))
    stored = stored_table(ordered, wire)
    header = len(update_header(ordered, stored, MAX_EXAMPLES, "0" * 64)) + _HEADER_SPARE_BYTES
    return UpdateSize(header + stored.nbytes, header)


def size_of_bytes(model_bytes: int) -> UpdateSize:
    """The same where only the bytes of the values are known."""
    header = _HEADER_GUESS_BYTES + -(-model_bytes // 8000) * 8
    return UpdateSize(header + model_bytes, header)


@dataclass(frozen=True)
class Inviting:
    """What all invitations to a round have in common.

    Attributes:
        expect_clients: the clients that the round is for; empty where anyone may come.
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
        model: the model's name; needed where the round is not open yet.
        table: the model's tensors, for its first round.
        model_bytes: bytes of the model's values as they are stored, for its first round, where `table` is not known.

    Raises:
        BadInput: the model, or the size of an update, is not known.
        RoundConflict: the round is closed, or is one of another model.
    """
    check_name("round", round_id)
    record = read_record(bucket, round_id)
    opened = record.model if record else None
    if opened is None and model is None:
        raise BadInput(f"Round {round_id} is not open yet, so nobody knows its model. Add --model.")
    if opened is not None and model is not None and model != opened:
        raise RoundConflict(f"Round {round_id} is one of model {opened}, not of {model}.")
    name = check_name("model", opened or model or "")
    if exists(bucket, manifest_key(round_id)):
        raise RoundConflict(f"Round {round_id} is closed: its updates are pinned. Invite to the next round.")
    latest = latest_table(bucket, name)
    if latest is not None:
        table = latest[1]
    if table is not None:
        size, digest = update_size(table, wire), _digest(table)
    elif model_bytes is not None:
        size, digest = size_of_bytes(model_bytes), None
    else:
        raise BadInput(
            f"Model {name} has no global model yet, so the size of an update is not known. Add --like FILE with the "
            "model's tensors, or --model-bytes."
        )
    expected = (record.request.expect_clients or ()) if record else ()
    return Inviting(round_id, name, wire, size, digest, latest[0] if latest else None, expected)


def _digest(table: TensorTable) -> str:
    return TensorTable(tuple(table.tensors[i] for i in canonical_order(table))).sha256


def invite(bucket: Bucket, inviting: Inviting, client: str, expires_s: float) -> Invitation:
    """Make one client's invitation.

    Raises:
        InvalidName: a client id that cannot be part of a key.
        BadInput: a life that presigned requests cannot have, or a client that the round is not for.
    """
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise BadInput(f"An invitation lives from 1 second to {MAX_EXPIRES_S // 86400} days; {expires_s:.0f} s do not.")
    key = update_key(inviting.round_id, client)
    if inviting.expect_clients and client not in inviting.expect_clients:
        raise BadInput(
            f"Client {client} is not among the {len(inviting.expect_clients)} clients that round {inviting.round_id} "
            "was opened for. Open it anew with --expect-clients and --replace-options, or invite to another round."
        )
    result = global_key(inviting.model, inviting.round_id)
    now, size = time.time(), inviting.size

    def sign(operation: str, key: str, **parameters: Any) -> str:
        return bucket.s3.generate_presigned_url(
            operation, Params={"Bucket": bucket.name, "Key": key, **parameters}, ExpiresIn=int(expires_s)
        )

    in_parts = size.nbytes > MULTIPART_ABOVE
    return Invitation(
        round_id=inviting.round_id,
        client=client,
        model=inviting.model,
        issued_at=round(now, 3),
        expires_at=round(min(now + int(expires_s), signing_credentials(bucket.s3).ends_at or math.inf), 3),
        size=size.nbytes,
        header_bytes=size.header_bytes,
        stored_url=sign("get_object", key, Range=f"bytes=0-{size.header_bytes - 1}"),
        closed_url=sign("head_object", manifest_key(inviting.round_id)),
        result_url=sign("get_object", result),
        wire=inviting.wire,
        tensors_sha256=inviting.tensors_sha256,
        put_url=None if in_parts else sign("put_object", key, ContentLength=size.nbytes, IfNoneMatch="*"),
        parts=_in_parts(bucket, key, size.nbytes, sign) if in_parts else None,
        base_round=inviting.base_round,
        base_url=sign("get_object", global_key(inviting.model, inviting.base_round)) if inviting.base_round else None,
    )


def _in_parts(bucket: Bucket, key: str, size: int, sign: Any) -> Parts:
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


@dataclass(frozen=True)
class SigningCredentials:
    """Whether presigned requests end before their time, with the credentials that signed them.

    Attributes:
        ends_at: seconds since the epoch; None where they stay, or nobody here knows.
    """

    temporary: bool
    ends_at: float | None


def signing_credentials(s3: S3Client) -> SigningCredentials:
    """The life of the credentials that a client signs with."""
    # boto3 has no public way from a client to its credentials, and none to the end of temporary ones.
    credentials: Any = s3._request_signer._credentials  # type: ignore[attr-defined]
    if credentials is None or credentials.get_frozen_credentials().token is None:
        return SigningCredentials(temporary=False, ends_at=None)
    ends: datetime | None = getattr(credentials, "_expiry_time", None)
    return SigningCredentials(temporary=True, ends_at=ends.timestamp() if ends else None)


def early_end(credentials: SigningCredentials, expires_s: float) -> str | None:
    """A sentence where invitations may end before `expires_s` is over, None where they will not."""
    if not credentials.temporary:
        return None
    if credentials.ends_at is None:
        return (
            "These invitations are signed with temporary credentials whose end is not known here; S3 refuses the "
            "invitations from then on."
        )
    left = credentials.ends_at - time.time()
    if left >= expires_s:
        return None
    return (
        f"These invitations end in {left / 60:.0f} minutes, with the temporary credentials that sign them, not in "
        f"{expires_s / 60:.0f}. For longer ones, log in for a longer session or sign as a user with keys of its own."
    )
