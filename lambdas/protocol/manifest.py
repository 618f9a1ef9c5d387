"""The manifest, `rounds/R/manifest.json`: the round as it was frozen, which every worker of the round follows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, TypedDict

from lambdas.protocol.documents import Document, build, canonical_json, sha256_hex
from lambdas.protocol.errors import InvalidContract, shown
from lambdas.protocol.fields import ClientId, Examples, ModelName, RoundId, Sha256, Size, integer, one_of
from lambdas.protocol.keys import ROUNDS_PREFIX, client_of, global_key, is_name, shard_key
from lambdas.protocol.limits import MAX_CLIENTS, MAX_INT, MAX_PART_BYTES, MAX_SHARDS
from lambdas.protocol.tensor_table import ITEMSIZE, TensorTable
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES

# Where workers store the clients' sums of squares: in their result messages; or in one object per shard, written before
# the shard, where the round depends on them or a message would be too long.
NORMS = ("results", "objects")


@dataclass(frozen=True)
class Participant:
    """One pinned update.

    Attributes:
        etag: S3's ETag, quotes included, as `If-Match` takes it.
        size: length of the object in bytes.
        data_offset: where its data section starts (8 + header length).
        num_examples: the weight in the average.
        header_sha256: SHA-256 of everything in front of the data section at the time of pinning.
        data_sha256: SHA-256 of the data section according to the header; None where the header does not give it.
        layout: index into the manifest's `layouts`: the dtypes in which this update stores the tensors.
    """

    client: ClientId
    key: str
    etag: str
    size: Size
    data_offset: Annotated[int, integer(8, MAX_INT)]
    num_examples: Examples
    header_sha256: Sha256
    data_sha256: Sha256 | None = None
    layout: Size = 0


@dataclass(frozen=True)
class Output:
    """Where the averaged shards go.

    `multipart`: shard m is part m + 1 of the upload `upload_id` to `key`. `objects`: shard m is an object of its own,
    because it is smaller than S3's smallest part, and the coordinator concatenates the objects at `key`.
    """

    kind: Annotated[str, one_of(("multipart", "objects"))]
    key: str
    upload_id: str | None = None


@dataclass(frozen=True)
class Exclusion:
    """A client whose update is not part of the average.

    Attributes:
        kind: class name of the error, such as `NonFiniteUpdate`.
        reason: what is wrong with the update, a sentence.
    """

    client: ClientId
    kind: str
    reason: str


@dataclass(frozen=True)
class RoundManifest(Document):
    """The frozen round. Its SHA-256 is in every job.

    Attributes:
        participants: in ascending client id, the order of summation.
        table: the tensors of the global model.
        layouts: per distinct storage layout, one dtype per tensor; the updates refer to them by index.
        bounds: the shard bounds (see `shard_bounds`); a tree has one shard, the whole model.
        created_at: when the round was pinned, seconds since the epoch.
        topology: one of TOPOLOGIES.
        revision: how many times the round was replanned without clients whose updates cannot be averaged.
        excluded: those clients, and the ones that were left out at intake, in ascending client id.
        norms: one of NORMS.
    """

    WHAT = "Manifest"
    SCHEMA = 2  # `topology` was `architecture` in 1

    round_id: RoundId
    model: ModelName
    participants: tuple[Participant, ...]
    table: TensorTable
    layouts: tuple[tuple[Annotated[str, one_of(ITEMSIZE)], ...], ...]
    bounds: tuple[int, ...]
    output: Output
    created_at: float
    topology: Annotated[str, one_of(TOPOLOGIES)] = GRADS_SHARDING
    revision: Annotated[int, integer(0, MAX_CLIENTS)] = 0
    excluded: tuple[Exclusion, ...] = ()
    norms: Annotated[str, one_of(NORMS)] = "results"

    def shard_key(self, shard: int) -> str:
        """Key of one shard's object; see `Output`."""
        return shard_key(self.round_id, shard, self.shards, self.revision)

    @property
    def shards(self) -> int:
        """The number of shards, M."""
        return len(self.bounds) - 1

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the document's bytes."""
        return sha256_hex(self.to_bytes())

    @cached_property
    def total_examples(self) -> int:
        """The sum of the weights."""
        return sum(p.num_examples for p in self.participants)

    @cached_property
    def layout_tables(self) -> tuple[TensorTable, ...]:
        """The tensor table of each layout."""
        return tuple(self.table.with_dtypes(dtypes) for dtypes in self.layouts)

    def shard_nbytes(self, shard: int) -> int:
        """Bytes of one averaged shard, without the file header in front of part 1."""
        return self.table.byte_at(self.bounds[shard + 1]) - self.table.byte_at(self.bounds[shard])

    def to_bytes(self) -> bytes:
        same = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "table"}
        table = {"tensors": self.table.to_json(), "tensors_sha256": self.table.sha256}
        return canonical_json({"schema": self.SCHEMA, **same, **table})

    @classmethod
    def from_object(cls, value: dict[str, Any]) -> RoundManifest:
        round_id = value.get("round_id")
        what = f"Manifest of round {round_id}" if is_name(round_id) else cls.WHAT
        stored = build(what, _StoredTable, value)
        table = TensorTable.from_json(what, stored["tensors"])
        if stored["tensors_sha256"] != table.sha256:
            raise InvalidContract(f"{what}: tensors_sha256 does not match the tensor table.")
        manifest = build(what, cls, value, table=table)
        manifest._check_output(what)
        manifest._check_participants(what)
        manifest._check_bounds(what)
        return manifest

    def _check_output(self, what: str) -> None:
        if (self.output.kind == "multipart") != (self.output.upload_id is not None):
            raise InvalidContract(f"{what}: output: expected an upload_id with a multipart upload, and only there.")
        if self.output.key != global_key(self.model, self.round_id):
            raise InvalidContract(f"{what}: output key {shown(self.output.key)} is not the key of the round's model.")

    def _check_participants(self, what: str) -> None:
        if any(len(layout) != len(self.table.tensors) for layout in self.layouts):
            raise InvalidContract(f"{what}: layouts: expected one dtype for each of the tensors.")
        if not 1 <= len(self.participants) <= MAX_CLIENTS:
            raise InvalidContract(f"{what}: {len(self.participants)} participants; expected 1 to {MAX_CLIENTS}.")
        clients = [p.client for p in self.participants]
        if not _ascending(clients):
            raise InvalidContract(f"{what}: the participants are not in ascending client id.")
        excluded = [e.client for e in self.excluded]
        if not _ascending(excluded) or not set(excluded).isdisjoint(clients):
            raise InvalidContract(f"{what}: the excluded clients are not in ascending client id, or also participate.")
        sizes = [table.nbytes for table in self.layout_tables]
        for p in self.participants:
            if p.layout >= len(sizes):
                raise InvalidContract(f"{what}: client {p.client}: layout {p.layout} of {len(sizes)} layouts.")
            if p.size != p.data_offset + sizes[p.layout]:
                raise InvalidContract(
                    f"{what}: client {p.client}: {p.size} bytes, but header and tensors take "
                    f"{p.data_offset + sizes[p.layout]}."
                )
            if not p.key.startswith(ROUNDS_PREFIX) or client_of(p.key) != p.client:
                raise InvalidContract(f"{what}: client {p.client}: {shown(p.key)} is not the key of its update.")

    def _check_bounds(self, what: str) -> None:
        bounds = self.bounds
        if not 1 <= self.shards <= MAX_SHARDS:
            raise InvalidContract(f"{what}: {self.shards} shards; expected 1 to {MAX_SHARDS}.")
        if bounds[0] != 0 or bounds[-1] != self.table.elements or any(a > b for a, b in itertools.pairwise(bounds)):
            raise InvalidContract(
                f"{what}: the shard bounds do not cover the {self.table.elements} values exactly once."
            )
        if self.topology != GRADS_SHARDING:
            if self.shards != 1:
                raise InvalidContract(f"{what}: {self.shards} shards, but {self.topology} averages whole models.")
        elif any(self.shard_nbytes(m) > MAX_PART_BYTES for m in range(self.shards)):
            raise InvalidContract(f"{what}: a shard has more than {MAX_PART_BYTES} bytes, the limit of a part.")


class _StoredTable(TypedDict):
    """The tensor table in a manifest's JSON."""

    tensors: tuple[Any, ...]
    tensors_sha256: Sha256


def _ascending(names: Sequence[str]) -> bool:
    return all(a < b for a, b in itertools.pairwise(names))
