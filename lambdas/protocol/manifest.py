"""`rounds/R/manifest.json`: the frozen round."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import cached_property

from lambdas.protocol.documents import Fields, canonical_json, sha256_hex
from lambdas.protocol.errors import InvalidContract, shown
from lambdas.protocol.keys import client_of, global_key, rounds_prefix, shard_key
from lambdas.protocol.limits import MAX_CLIENTS, MAX_EXAMPLES, MAX_INT, MAX_PART_BYTES, MAX_SHARDS
from lambdas.protocol.tensor_table import ITEMSIZE, TensorTable
from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES

# 2: `topology` was `architecture`.
SCHEMA = 2


@dataclass(frozen=True)
class Participant:
    """One pinned update.

    Attributes:
        etag: S3's ETag, quotes included, as `If-Match` takes it.
        size: length of the object in bytes.
        data_offset: where its data section starts (8 + header length).
        num_examples: the weight in the average.
        header_sha256: SHA-256 of everything in front of the data section, as it was when the round was pinned.
        data_sha256: SHA-256 of the data section, as the header gives it; None where the update was written by a tool
            that leaves it out.
        layout: index into the manifest's `layouts`: the dtypes in which this update stores the tensors.
    """

    client: str
    key: str
    etag: str
    size: int
    data_offset: int
    num_examples: int
    header_sha256: str
    data_sha256: str | None = None
    layout: int = 0


@dataclass(frozen=True)
class Output:
    """Where the averaged shards go.

    `multipart`: shard m is part m + 1 of the upload `upload_id` to `key`. `objects`: shard m is an object of its own
    (S3 wants parts of 5 MiB and more) and the orchestrator puts them together at `key`.
    """

    kind: str
    key: str
    upload_id: str | None = None


@dataclass(frozen=True)
class Exclusion:
    """A client whose update is in none of the round's shards.

    Attributes:
        kind: the class of the error, such as `NonFiniteUpdate`.
        reason: what is wrong with the update, a sentence.
    """

    client: str
    kind: str
    reason: str

    @classmethod
    def from_fields(cls, f: Fields) -> Exclusion:
        return cls(f.name("client", "client id"), f.text("kind"), f.text("reason"))


# Where workers leave the clients' sums of squares: in their result messages, or in an object per shard that is there
# before the shard is (where the round depends on them, or a message would be too long).
NORMS = ("results", "objects")


@dataclass(frozen=True)
class RoundManifest:
    """`rounds/R/manifest.json`: the frozen round. Its SHA-256 is in every job.

    Attributes:
        participants: in ascending client id, the order of summation.
        table: the tensors of the global model.
        layouts: per distinct storage layout, one dtype per tensor; the updates refer to them by index.
        bounds: the shard table (see `shard_bounds`); a tree's has one shard, the whole model.
        topology: one of TOPOLOGIES.
        revision: how often the round was planned anew, without clients whose updates turned out to be bad.
        excluded: those clients, and those that were left out when the round closed, in ascending client id.
        norms: one of NORMS.
    """

    round_id: str
    model: str
    participants: tuple[Participant, ...]
    table: TensorTable
    layouts: tuple[tuple[str, ...], ...]
    bounds: tuple[int, ...]
    output: Output
    created_at: float
    topology: str = GRADS_SHARDING
    revision: int = 0
    excluded: tuple[Exclusion, ...] = ()
    norms: str = "results"

    def shard_key(self, shard: int) -> str:
        """Key of one shard's object, where shards are objects."""
        return shard_key(self.round_id, shard, self.shards, self.revision)

    @property
    def shards(self) -> int:
        """M."""
        return len(self.bounds) - 1

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the document's bytes; every job of the round has it."""
        return sha256_hex(self.to_bytes())

    @cached_property
    def total_examples(self) -> int:
        """Sum of the weights."""
        return sum(p.num_examples for p in self.participants)

    @cached_property
    def layout_tables(self) -> tuple[TensorTable, ...]:
        """The tensor table as each layout stores it."""
        return tuple(self.table.with_dtypes(dtypes) for dtypes in self.layouts)

    def shard_nbytes(self, shard: int) -> int:
        """Bytes of one averaged shard, without the file header that part 1 carries in front."""
        return self.table.byte_at(self.bounds[shard + 1]) - self.table.byte_at(self.bounds[shard])

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "schema": SCHEMA,
                "round_id": self.round_id,
                "model": self.model,
                "participants": [asdict(p) for p in self.participants],
                "tensors": self.table.to_json(),
                "tensors_sha256": self.table.sha256,
                "layouts": [list(dtypes) for dtypes in self.layouts],
                "bounds": list(self.bounds),
                "output": asdict(self.output),
                "created_at": self.created_at,
                "topology": self.topology,
                "revision": self.revision,
                "excluded": [asdict(e) for e in self.excluded],
                "norms": self.norms,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> RoundManifest:
        """Parse and check a manifest: whatever contradicts itself raises InvalidContract."""
        f = Fields.parse("Manifest", data, SCHEMA)
        what = f"Manifest of round {f.name('round_id', 'round')}"
        table = TensorTable.from_json(what, f.array("tensors"))
        if f.digest("tensors_sha256") != table.sha256:
            raise InvalidContract(f"{what}: tensors_sha256 does not match the tensor table.")
        layouts = []
        for row in f.array("layouts"):
            if (
                not isinstance(row, list)
                or len(row) != len(table.tensors)
                or any(not isinstance(d, str) or d not in ITEMSIZE for d in row)
            ):
                raise InvalidContract(f"{what}: layouts: expected one averaged dtype for each of the tensors.")
            layouts.append(tuple(row))
        out = f.object("output")
        output = Output(out.choice("kind", ("multipart", "objects")), out.text("key"), out.optional_text("upload_id"))
        if (output.kind == "multipart") != (output.upload_id is not None):
            raise InvalidContract(f"{what}: output: a multipart upload, and nothing else, has an upload_id.")
        manifest = cls(
            round_id=f.text("round_id"),
            model=f.name("model", "model"),
            participants=tuple(
                Participant(
                    client=p.name("client", "client id"),
                    key=p.text("key"),
                    etag=p.text("etag"),
                    size=p.integer("size", 0, MAX_INT),
                    data_offset=p.integer("data_offset", 8, MAX_INT),
                    num_examples=p.integer("num_examples", 1, MAX_EXAMPLES),
                    header_sha256=p.digest("header_sha256"),
                    data_sha256=p.optional_digest("data_sha256"),
                    layout=p.integer("layout", 0, len(layouts) - 1),
                )
                for p in f.objects("participants")
            ),
            table=table,
            layouts=tuple(layouts),
            bounds=f.integers("bounds"),
            output=output,
            created_at=f.number("created_at"),
            topology=f.choice("topology", TOPOLOGIES),
            revision=f.integer("revision", 0, MAX_CLIENTS),
            excluded=tuple(Exclusion.from_fields(e) for e in f.objects("excluded")),
            norms=f.choice("norms", NORMS),
        )
        manifest._check(what)
        return manifest

    def _check(self, what: str) -> None:
        if not 1 <= len(self.participants) <= MAX_CLIENTS:
            raise InvalidContract(f"{what}: {len(self.participants)} participants; expected 1 to {MAX_CLIENTS}.")
        clients = [p.client for p in self.participants]
        if any(a >= b for a, b in itertools.pairwise(clients)):
            raise InvalidContract(f"{what}: the participants are not in ascending client id.")
        sizes = [t.nbytes for t in self.layout_tables]
        left_out = [e.client for e in self.excluded]
        if any(a >= b for a, b in itertools.pairwise(left_out)) or not set(left_out).isdisjoint(clients):
            raise InvalidContract(f"{what}: the excluded clients are not in ascending id, or take part.")
        for p in self.participants:
            if p.size != p.data_offset + sizes[p.layout]:
                raise InvalidContract(
                    f"{what}: client {p.client}: {p.size} bytes, but header and tensors take "
                    f"{p.data_offset + sizes[p.layout]}."
                )
            if not p.key.startswith(rounds_prefix()) or client_of(p.key) != p.client:
                raise InvalidContract(f"{what}: client {p.client}: {shown(p.key)} is not the key of its update.")
        if self.output.key != global_key(self.model, self.round_id):
            raise InvalidContract(f"{what}: output key {shown(self.output.key)} is not this round's.")
        bounds = self.bounds
        if not 2 <= len(bounds) <= MAX_SHARDS + 1:
            raise InvalidContract(f"{what}: {len(bounds) - 1} shards; expected 1 to {MAX_SHARDS}.")
        if bounds[0] != 0 or bounds[-1] != self.table.elements or any(a > b for a, b in itertools.pairwise(bounds)):
            raise InvalidContract(
                f"{what}: the shard bounds do not cover the {self.table.elements} values exactly once."
            )
        if self.topology == GRADS_SHARDING and any(self.shard_nbytes(m) > MAX_PART_BYTES for m in range(self.shards)):
            raise InvalidContract(f"{what}: a shard of more than {MAX_PART_BYTES} bytes, more than any part can have.")
        if self.topology != GRADS_SHARDING and self.shards != 1:
            raise InvalidContract(f"{what}: {self.shards} shards, but {self.topology} averages whole models.")
