"""Closing a round: which updates are in, checked one by one before any job is queued."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from lambdas.protocol.errors import FederationError, InvalidName, InvalidUpdate, UpdateChanged, shown
from lambdas.protocol.keys import client_of, update_key, updates_prefix
from lambdas.protocol.limits import MAX_CLIENTS, MAX_EXAMPLES
from lambdas.protocol.manifest import Exclusion, Participant
from lambdas.protocol.safetensors import UpdateHeader, check_same_table, parse_update_header
from lambdas.protocol.tensor_table import TensorTable
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.models import latest_table, read_header
from orchestrator.aws.s3 import error_code, list_objects
from orchestrator.errors import RoundFailed

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

_ERRORS_SHOWN, _REASON_CHARS = 10, 500
# A header's JSON may take twenty times its length; a client that sends the longest there is costs that once at a time.
_PARSING = threading.Lock()


@dataclass(frozen=True)
class Update:
    """An update as S3 lists it; `arrived_at` in seconds since the epoch, by S3's clock."""

    client: str
    key: str
    etag: str
    size: int
    arrived_at: float = 0.0


@dataclass(frozen=True)
class Pinned:
    """The checked updates of a round, in ascending client id, the tensors they share, and who is left out and why."""

    participants: tuple[Participant, ...]
    table: TensorTable
    layouts: tuple[tuple[str, ...], ...]
    excluded: tuple[Exclusion, ...] = ()


def list_updates(bucket: Bucket, round_id: str) -> list[Update]:
    """The updates that are there now, in ascending client id; one LIST request per 1,000.

    Whatever else lies among them is passed over with a warning: nobody stops a round by storing an odd object, and
    nobody takes part twice by storing one a folder further down.
    """
    updates = []
    for item in list_objects(bucket, updates_prefix(round_id)):
        key = item["Key"]
        try:
            client = client_of(key)
        except InvalidName:
            client = None
        if client is None or key != update_key(round_id, client):
            log.warning("Round %s: s3://%s/%s is no update, and is passed over.", round_id, bucket.name, shown(key))
            continue
        updates.append(Update(client, key, item["ETag"], item["Size"], item["LastModified"].timestamp()))
    return sorted(updates, key=lambda update: update.client)


def pin_updates(
    bucket: Bucket,
    round_id: str,
    model: str,
    updates: Sequence[Update],
    progress: Callable[[int], object] = lambda count: None,
    *,
    exclude: bool = False,
    max_examples: int = MAX_EXAMPLES,
) -> Pinned:
    """Read every update's header, one GET each, and check it against the round's tensor table.

    The round's table is that of the model's last global model; in a model's first round, the one that most clients
    have (of several, the first client's).

    Args:
        progress: called with 1 for every header read.
        exclude: leave out the clients whose updates cannot be averaged; otherwise they fail the round.
        max_examples: a larger example count is not believed.

    Raises:
        RoundFailed: names each unusable update (the first ten) with the reason and the next step.
    """
    if len(updates) > MAX_CLIENTS:
        raise RoundFailed(
            f"Round {round_id} has {len(updates)} updates; the most that one round averages is {MAX_CLIENTS}."
        )

    def read(update: Update) -> UpdateHeader | FederationError:
        try:
            return _read_update_header(bucket, update)
        except InvalidUpdate as error:
            return error
        finally:
            progress(1)

    with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        headers = list(pool.map(read, updates))
    expected, source = _expected_table(bucket, model, updates, headers)
    participants, layouts, problems = [], dict[tuple[str, ...], int](), list[Exclusion]()
    for update, header in zip(updates, headers, strict=True):
        try:
            if isinstance(header, FederationError):
                raise header
            check_same_table(header.table, expected, source=source)
            if header.num_examples > max_examples:
                raise InvalidUpdate(
                    f"an example count of {header.num_examples} is above the largest of {max_examples} of this round"
                )
        except InvalidUpdate as error:
            problems.append(Exclusion(update.client, type(error).__name__, str(error)[:_REASON_CHARS]))
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
    if problems and not exclude:
        more = f"\n  and {len(problems) - _ERRORS_SHOWN} more" if len(problems) > _ERRORS_SHOWN else ""
        raise RoundFailed(
            f"Round {round_id}: {len(problems)} of {len(updates)} updates cannot be averaged; nothing was queued:\n  "
            + "\n  ".join(f"client {p.client}: {p.reason}" for p in problems[:_ERRORS_SHOWN])
            + more
            + f"\nDelete what is wrong under s3://{bucket.name}/{updates_prefix(round_id)}, have those clients submit "
            "again, and start the round again; or start it with --on-invalid exclude."
        )
    return Pinned(tuple(participants), expected, tuple(layouts), tuple(problems))


def _expected_table(
    bucket: Bucket, model: str, updates: Sequence[Update], headers: Sequence[UpdateHeader | FederationError]
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
    # One client with another model must not make all others the odd ones out. max() keeps the first of several.
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
