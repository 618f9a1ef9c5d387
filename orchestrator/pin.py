"""Closing a round: which updates are in, checked one by one before any job is queued."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from lambdas.contract import MAX_CLIENTS, Participant, TensorTable, client_of, updates_prefix
from lambdas.errors import FederationError, InvalidName, InvalidUpdate, UpdateChanged
from lambdas.tensors import UpdateHeader, check_same_table, parse_update_header
from orchestrator.aws import REQUESTS_AT_ONCE, error_code, list_objects
from orchestrator.errors import RoundFailed
from orchestrator.submit import latest_table, read_header

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ERRORS_SHOWN = 10
# A header's JSON may take twenty times its length; a client that sends the longest there is costs that once at a time.
_PARSING = threading.Lock()


@dataclass(frozen=True)
class Update:
    """An update as S3 lists it."""

    client: str
    key: str
    etag: str
    size: int


@dataclass(frozen=True)
class Pinned:
    """The checked updates of a round, in ascending client id, and the tensors they share."""

    participants: tuple[Participant, ...]
    table: TensorTable
    layouts: tuple[tuple[str, ...], ...]


def list_updates(s3: S3Client, bucket: str, round_id: str) -> list[Update]:
    """The updates that are there now, in ascending client id; one LIST request per 1,000.

    Raises:
        RoundFailed: an object that is no update lies among them.
    """
    updates = []
    for item in list_objects(s3, bucket, updates_prefix(round_id)):
        try:
            updates.append(Update(client_of(item["Key"]), item["Key"], item["ETag"], item["Size"]))
        except InvalidName as error:
            raise RoundFailed(f"Round {round_id}: {error} Delete the object s3://{bucket}/{item['Key']}.") from error
    return sorted(updates, key=lambda update: update.client)


def pin_updates(
    s3: S3Client,
    bucket: str,
    round_id: str,
    model: str,
    updates: Sequence[Update],
    progress: Callable[[int], object] = lambda count: None,
) -> Pinned:
    """Read every update's header, one GET each, and check it against the round's tensor table.

    The round's table is that of the model's last global model; in a model's first round, that of the first client.

    Args:
        progress: called with 1 for every header read.

    Raises:
        RoundFailed: names each unusable update (the first ten) with the reason and the next step.
    """
    if len(updates) > MAX_CLIENTS:
        raise RoundFailed(
            f"Round {round_id} has {len(updates)} updates; the most that one round averages is {MAX_CLIENTS}."
        )

    def read(update: Update) -> UpdateHeader | FederationError:
        try:
            return _read_update_header(s3, bucket, update)
        except InvalidUpdate as error:
            return error
        finally:
            progress(1)

    with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        headers = list(pool.map(read, updates))
    expected, source = _expected_table(s3, bucket, model, updates, headers)
    participants, layouts, problems = [], dict[tuple[str, ...], int](), []
    for update, header in zip(updates, headers, strict=True):
        try:
            if isinstance(header, FederationError):
                raise header
            check_same_table(header.table, expected, source=source)
        except InvalidUpdate as error:
            problems.append(f"client {update.client}: {error}")
            continue
        participants.append(
            Participant(
                client=update.client,
                key=update.key,
                etag=update.etag,
                size=update.size,
                data_offset=header.data_offset,
                num_examples=header.num_examples,
                header_sha256=header.sha256,
                data_sha256=header.data_sha256,
                layout=layouts.setdefault(header.dtypes, len(layouts)),
            )
        )
    if problems:
        more = f"\n  and {len(problems) - _ERRORS_SHOWN} more" if len(problems) > _ERRORS_SHOWN else ""
        raise RoundFailed(
            f"Round {round_id}: {len(problems)} of {len(updates)} updates cannot be averaged; nothing was queued:\n  "
            + "\n  ".join(problems[:_ERRORS_SHOWN])
            + more
            + f"\nDelete what is wrong under s3://{bucket}/{updates_prefix(round_id)}, have those clients submit "
            "again, and start the round again."
        )
    return Pinned(tuple(participants), expected, tuple(layouts))


def _expected_table(
    s3: S3Client, bucket: str, model: str, updates: Sequence[Update], headers: Sequence[UpdateHeader | FederationError]
) -> tuple[TensorTable, str]:
    latest = latest_table(s3, bucket, model)
    if latest is not None:
        return latest[1], f"global model {model} of round {latest[0]}"
    for update, header in zip(updates, headers, strict=True):
        if isinstance(header, UpdateHeader) and header.table.elements > 0:
            return header.table, f"client {update.client}'s update"
    return TensorTable(()), "any update"


def _read_update_header(s3: S3Client, bucket: str, update: Update) -> UpdateHeader:
    try:
        raw = read_header(s3, bucket, update.key, update.size, etag=update.etag)
    except ClientError as error:
        if error_code(error) in ("PreconditionFailed", "NoSuchKey"):
            raise UpdateChanged("was replaced or deleted while the round was closing", client=update.client) from error
        raise
    with _PARSING:
        header = parse_update_header(raw, update.size)
    if header.table.elements == 0:
        raise InvalidUpdate("has no values: expected a model's tensors", client=update.client)
    return header
