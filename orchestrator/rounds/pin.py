"""Pinning the updates of a round: each one is checked before any job is queued."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from botocore.exceptions import ClientError

from lambdas.protocol.errors import InvalidName, InvalidUpdate, UpdateChanged, shown
from lambdas.protocol.keys import client_of, update_key, updates_prefix
from lambdas.protocol.limits import MAX_CLIENTS
from lambdas.protocol.manifest import Exclusion, Participant
from lambdas.protocol.safetensors import UpdateHeader, check_same_table, parse_update_header
from lambdas.protocol.tensor_table import TensorTable
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.models import latest_table, read_header
from orchestrator.aws.s3 import error_code, list_objects
from orchestrator.errors import RoundFailed
from orchestrator.rounds.request import RoundRequest

log = logging.getLogger(__name__)

_ERRORS_SHOWN, _REASON_CHARS = 10, 500
# Parsing a header may take twenty times its length in memory. The lock limits that to one header at a time.
_PARSING = threading.Lock()


@dataclass(frozen=True)
class Update:
    """An update as S3 lists it. `arrived_at` is in seconds since the epoch, by S3's clock."""

    client: str
    key: str
    etag: str
    size: int
    arrived_at: float = 0.0


@dataclass(frozen=True)
class Pinned:
    """The checked updates of a round in ascending client id, their common tensors, and the clients left out."""

    participants: tuple[Participant, ...]
    table: TensorTable
    layouts: tuple[tuple[str, ...], ...]
    excluded: tuple[Exclusion, ...] = ()


def list_updates(bucket: Bucket, round_id: str) -> list[Update]:
    """The updates that S3 holds now, in ascending client id. Takes one LIST request per 1,000 updates.

    Other objects under the prefix are ignored with a warning: they must not stop the round, and a client must not
    take part twice by means of a key in a deeper folder.
    """
    updates = []
    for item in list_objects(bucket, updates_prefix(round_id)):
        key = item["Key"]
        try:
            client = client_of(key)
        except InvalidName:
            client = None
        if client is None or key != update_key(round_id, client):
            log.warning("Round %s: s3://%s/%s is not an update, and is ignored.", round_id, bucket.name, shown(key))
            continue
        updates.append(Update(client, key, item["ETag"], item["Size"], item["LastModified"].timestamp()))
    return sorted(updates, key=lambda update: update.client)


def pin_updates(
    bucket: Bucket,
    request: RoundRequest,
    updates: Sequence[Update],
    progress: Callable[[int], object] = lambda count: None,
) -> Pinned:
    """Read the header of every update, one GET each, and check it against the round's tensor table.

    The round's table is the one of the model's last global model. In a model's first round it is the table that most
    clients have; of several, the first client's.

    Args:
        progress: called with 1 for every header read.

    Raises:
        RoundFailed: updates cannot be averaged, and the round does not exclude them. Names the first ten with their
            reasons and the next step.
    """
    if len(updates) > MAX_CLIENTS:
        raise RoundFailed(
            f"Round {request.round_id} has {len(updates)} updates; one round averages at most {MAX_CLIENTS}."
        )
    headers = _read_headers(bucket, updates, progress)
    expected, source = _expected_table(bucket, request.model, updates, headers)
    participants, layouts, problems = [], dict[tuple[str, ...], int](), list[Exclusion]()
    for update, found in zip(updates, headers, strict=True):
        try:
            if isinstance(found, InvalidUpdate):
                raise found
            check_same_table(found.table, expected, source=source)
            if found.num_examples > request.max_examples:
                raise InvalidUpdate(
                    f"an example count of {found.num_examples} is above the largest of {request.max_examples} of this "
                    "round"
                )
        except InvalidUpdate as error:
            problems.append(Exclusion(update.client, type(error).__name__, str(error)[:_REASON_CHARS]))
            continue
        participants.append(_participant(update, found, layouts.setdefault(found.dtypes, len(layouts))))
    if problems and request.on_invalid != "exclude":
        raise _cannot_be_averaged(bucket, request.round_id, len(updates), problems)
    return Pinned(tuple(participants), expected, tuple(layouts), tuple(problems))


def _read_headers(
    bucket: Bucket, updates: Sequence[Update], progress: Callable[[int], object]
) -> list[UpdateHeader | InvalidUpdate]:
    """The header of each update, or what is wrong with it."""

    def read(update: Update) -> UpdateHeader | InvalidUpdate:
        try:
            return _read_update_header(bucket, update)
        except InvalidUpdate as error:
            return error
        finally:
            progress(1)

    with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(read, updates))


def _participant(update: Update, header: UpdateHeader, layout: int) -> Participant:
    return Participant(
        client=update.client,
        key=update.key,
        etag=update.etag,
        size=update.size,
        data_offset=header.data_offset,
        num_examples=header.num_examples,
        header_sha256=header.sha256,
        data_sha256=header.data_sha256,
        layout=layout,
    )


def _cannot_be_averaged(bucket: Bucket, round_id: str, updates: int, problems: Sequence[Exclusion]) -> RoundFailed:
    more = f"\n  and {len(problems) - _ERRORS_SHOWN} more" if len(problems) > _ERRORS_SHOWN else ""
    return RoundFailed(
        f"Round {round_id}: {len(problems)} of {updates} updates cannot be averaged; nothing was queued:\n  "
        + "\n  ".join(f"client {p.client}: {p.reason}" for p in problems[:_ERRORS_SHOWN])
        + more
        + f"\nDelete these updates under s3://{bucket.name}/{updates_prefix(round_id)}, have those clients submit "
        "again, and start the round again; or start it with --on-invalid exclude."
    )


def _expected_table(
    bucket: Bucket, model: str, updates: Sequence[Update], headers: Sequence[UpdateHeader | InvalidUpdate]
) -> tuple[TensorTable, str]:
    latest = latest_table(bucket, model)
    if latest is not None:
        return latest[1], f"global model {model} of round {latest[0]}"
    tables = [
        (header.table, update.client)
        for update, header in zip(updates, headers, strict=True)
        if isinstance(header, UpdateHeader)
    ]
    if not tables:
        return TensorTable(()), "any update"
    # One client with another model must not exclude all others. max() returns the first of several tables.
    counts = Counter(table.sha256 for table, _ in tables)
    table, client = max(tables, key=lambda item: counts[item[0].sha256])
    return table, f"client {client}'s update"


def _read_update_header(bucket: Bucket, update: Update) -> UpdateHeader:
    try:
        raw = read_header(bucket, update.key, update.size, etag=update.etag)
    except ClientError as error:
        if error_code(error) in ("PreconditionFailed", "NoSuchKey"):
            raise UpdateChanged("was replaced or deleted while the round was closing", client=update.client) from error
        raise
    with _PARSING:
        header = parse_update_header(raw, update.size)
    if header.table.elements == 0:
        raise InvalidUpdate("has no values: expected a model's tensors", client=update.client)
    return header
