"""The options of a round, and `rounds/R/round.json`, which stores them for every process that continues the round."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Annotated, Any

from lambdas.protocol.documents import Document, build, canonical_json
from lambdas.protocol.errors import FederationError, InvalidContract
from lambdas.protocol.fields import ClientCount, ClientId, Examples, ModelName, RoundId, ShardCount, integer, one_of
from lambdas.protocol.keys import check_name, manifest_key, round_key
from lambdas.protocol.limits import MAX_CLIENTS, MAX_EXAMPLES, MAX_SHARDS
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import create_object, exists, read_object, swap_object
from orchestrator.errors import BadInput, RoundConflict
from orchestrator.rounds.choices import ON_DEADLINE, ON_INVALID

# Options that concern only the process that coordinates: with another value it is still the same round.
_OF_THE_PROCESS = ("timeout_s",)


@dataclass(frozen=True)
class RoundRequest:
    """The options of `start-round`.

    Attributes:
        shards: shard count; None lets the planner choose among the deployed lanes.
        min_clients: quorum. With fewer usable updates the round does not publish.
        expect: close the round when this many updates are there (None: at the quorum).
        deadline_s: how long to wait for updates, seconds since the round was opened. 0 closes the round at once, with
            the updates that are there.
        timeout_s: how long to wait without any job being finished, seconds (None: as long as the lane's queue repeats
            jobs).
        min_fraction: quorum as a share of the expected clients, above 0 and at most 1. `min_clients` applies too.
        expect_clients: the clients that the round is for, ascending (None: any client). Others are left out and
            reported.
        on_deadline: below the quorum at the deadline, `fail` or `extend` the deadline.
        extend_s: seconds by which the deadline is extended at a time (None: `deadline_s`).
        max_extensions: the most extensions of the deadline before the round fails.
        on_invalid: with an update that cannot be averaged, `fail` the round or `exclude` the client.
        max_norm: the largest L2 norm of an update (None: any).
        max_examples: the largest example count of an update.
        late_from: a round whose late updates count in this one, unless their clients submit to this one themselves.
        topology: `grads-sharding`, or a tree: `lambda-fl` or `lifl`.
    """

    model: ModelName
    round_id: RoundId
    shards: ShardCount | None = None
    min_clients: ClientCount = 1
    expect: ClientCount | None = None
    deadline_s: float = 0.0
    timeout_s: float | None = None
    min_fraction: float | None = None
    expect_clients: tuple[ClientId, ...] | None = None
    on_deadline: Annotated[str, one_of(ON_DEADLINE)] = "fail"
    extend_s: float | None = None
    max_extensions: Annotated[int, integer(1, 1000)] = 3
    on_invalid: Annotated[str, one_of(ON_INVALID)] = "fail"
    max_norm: float | None = None
    max_examples: Examples = MAX_EXAMPLES
    late_from: RoundId | None = None
    topology: Annotated[str, one_of(TOPOLOGIES)] = GRADS_SHARDING

    def __post_init__(self) -> None:
        check_name("model", self.model)
        check_name("round", self.round_id)
        if self.expect_clients is not None:
            object.__setattr__(self, "expect_clients", tuple(sorted(set(self.expect_clients))))
        self._check_waiting()
        self._check_updates()

    def _check_waiting(self) -> None:
        if self.shards is not None and not 1 <= self.shards <= MAX_SHARDS:
            raise BadInput(f"{self.shards} shards; expected 1 to {MAX_SHARDS}.")
        if self.min_clients < 1:
            raise BadInput(f"A quorum of {self.min_clients} clients; expected 1 or more.")
        if self.expect_clients is not None:
            for client in self.expect_clients:
                check_name("client id", client)
            if self.expect is not None:
                raise BadInput("Expecting a number of clients and a list of clients at once: give one of the two.")
            if not 1 <= len(self.expect_clients) <= MAX_CLIENTS:
                raise BadInput(f"{len(self.expect_clients)} clients are expected by name; 1 to {MAX_CLIENTS} can be.")
        expected = self.expected
        if self.min_fraction is not None:
            if not 0 < self.min_fraction <= 1:
                raise BadInput(
                    f"A quorum of {self.min_fraction} of the expected clients; expected a share above 0 and up to 1."
                )
            if expected is None:
                raise BadInput(
                    "A quorum as a share of the expected clients needs their number or their names: give one of them."
                )
        if expected is not None and expected < self.min_clients:
            raise BadInput(f"Expecting {expected} clients cannot reach the quorum of {self.min_clients}.")
        if not (math.isfinite(self.deadline_s) and self.deadline_s >= 0):
            raise BadInput(f"A deadline of {self.deadline_s} s; expected 0 or more.")
        if self.timeout_s is not None and not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise BadInput(f"A timeout of {self.timeout_s} s; expected more than 0.")
        if self.on_deadline not in ON_DEADLINE:
            raise BadInput(f"At the deadline: {self.on_deadline!r}; expected {' or '.join(ON_DEADLINE)}.")
        if self.on_deadline == "extend" and self.deadline_s == 0:
            raise BadInput("Without a deadline there is nothing to extend. Give the round a deadline.")
        if self.extend_s is not None and not (math.isfinite(self.extend_s) and self.extend_s > 0):
            raise BadInput(f"Extending the deadline by {self.extend_s} s; expected more than 0.")
        if not 1 <= self.max_extensions <= 1000:
            raise BadInput(f"{self.max_extensions} extensions of the deadline; expected 1 to 1000.")

    def _check_updates(self) -> None:
        if self.on_invalid not in ON_INVALID:
            raise BadInput(f"With an invalid update: {self.on_invalid!r}; expected {' or '.join(ON_INVALID)}.")
        if self.max_norm is not None and not (math.isfinite(self.max_norm) and self.max_norm > 0):
            raise BadInput(f"A largest norm of {self.max_norm}; expected a number above 0.")
        if not 1 <= self.max_examples <= MAX_EXAMPLES:
            raise BadInput(f"A largest example count of {self.max_examples}; expected 1 to {MAX_EXAMPLES}.")
        if self.late_from is not None and check_name("round", self.late_from) == self.round_id:
            raise BadInput(f"Round {self.round_id} cannot take over its own late updates. Name an earlier round.")
        if self.topology not in TOPOLOGIES:
            raise BadInput(f"Unknown topology {self.topology!r}; expected {', '.join(TOPOLOGIES)}.")
        if self.max_norm is not None and self.topology != GRADS_SHARDING:
            raise BadInput(f"{self.topology} does not report the norms of updates; use {GRADS_SHARDING} instead.")
        if self.topology != GRADS_SHARDING and self.shards not in (None, 1):
            raise BadInput(f"{self.topology} averages whole models, not {self.shards} shards. Leave --shards out.")

    @property
    def expected(self) -> int | None:
        """The number of expected clients; None if none was given."""
        return len(self.expect_clients) if self.expect_clients is not None else self.expect

    @property
    def longest_wait_s(self) -> float:
        """The longest time that the round waits for updates, with every extension of its deadline, seconds."""
        extensions = self.max_extensions if self.on_deadline == "extend" else 0
        return self.deadline_s + extensions * (self.extend_s or self.deadline_s)

    @property
    def quorum(self) -> int:
        """The fewest usable updates with which the round publishes."""
        if self.min_fraction is None:
            return self.min_clients
        # Fraction(str()) takes the decimal digits: 0.55 of 100 is 55, although the float 0.55 is a little larger.
        return max(self.min_clients, math.ceil(Fraction(str(self.min_fraction)) * (self.expected or 0)))

    def differences(self, other: RoundRequest) -> list[str]:
        """The options in which `other` differs, a phrase for each."""
        return [
            f"{field.name} is {_shown(getattr(self, field.name))}, not {_shown(getattr(other, field.name))}"
            for field in fields(self)
            if field.name not in _OF_THE_PROCESS and getattr(self, field.name) != getattr(other, field.name)
        ]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(value[:5])}{', ...' if len(value) > 5 else ''}] ({len(value)} clients)"
    return "not given" if value is None else str(value)


@dataclass(frozen=True)
class RoundRecord(Document):
    """`rounds/R/round.json`: what the round was opened with, and when, in seconds since the epoch."""

    WHAT = "Round record"
    SCHEMA = 2  # `topology` was `architecture` in 1

    request: RoundRequest
    opened_at: float

    @property
    def round_id(self) -> str:
        """The round's id."""
        return self.request.round_id

    @property
    def model(self) -> str:
        """The model that the round publishes."""
        return self.request.model

    def to_bytes(self) -> bytes:
        return canonical_json({"schema": self.SCHEMA, "opened_at": self.opened_at, **asdict(self.request)})

    @classmethod
    def from_object(cls, value: dict[str, Any]) -> RoundRecord:
        try:
            request = build(cls.WHAT, RoundRequest, value)
        except InvalidContract:
            raise
        except FederationError as error:
            raise InvalidContract(f"{cls.WHAT}: {error}") from error
        return build(cls.WHAT, cls, value, request=request)


def read_record(bucket: Bucket, round_id: str) -> RoundRecord | None:
    """The record of a round; None where the round was not opened."""
    found = read_object(bucket, round_key(round_id))
    return RoundRecord.from_bytes(found[0]) if found else None


def open_round(bucket: Bucket, request: RoundRequest, *, replace_options: bool = False) -> RoundRecord:
    """Write the round's record, or read the existing one.

    Args:
        replace_options: if the round is open with other options, replace them and restart the deadline.

    Raises:
        RoundConflict: the round belongs to another model, or was opened with other options; names them.
    """
    record = RoundRecord(request, time.time())
    key = round_key(request.round_id)
    while True:
        if create_object(bucket, key, record.to_bytes()):
            return record
        found = read_object(bucket, key)
        if found is None:
            continue  # It was deleted in the meantime.
        existing = RoundRecord.from_bytes(found[0])
        if existing.model != request.model:
            raise RoundConflict(
                f"Round {request.round_id} is one of model {existing.model}, not of {request.model}. "
                "Choose another round id."
            )
        different = existing.request.differences(request)
        if not different:
            return replace(existing, request=replace(existing.request, timeout_s=request.timeout_s))
        pinned = exists(bucket, manifest_key(request.round_id))
        if pinned or not replace_options:
            raise RoundConflict(
                f"Round {request.round_id} was opened with other options: {'; '.join(different)}. "
                + (
                    "Its updates are pinned, so the options stay: continue it with those that it was opened with."
                    if pinned
                    else "Start it with the same options to continue it, or with --replace-options to change them."
                )
            )
        if swap_object(bucket, key, record.to_bytes(), found[1]):
            return record
