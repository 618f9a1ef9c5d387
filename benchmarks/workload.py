"""The updates that the benchmarks average. They differ between clients, are reproducible, and are never stored.

All clients' values come from one pool of random float32 values that is read in a circle. Client c starts STRIDE * c
values into the pool, so no two clients have the same value at the same index. Any byte range of any client is a view
of the pool, so a server can serve hundreds of gigabytes from 32 MiB of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.keys import global_key, update_key
from lambdas.protocol.manifest import Output, Participant, RoundManifest
from lambdas.protocol.messages import ShardJob
from lambdas.protocol.safetensors import serialize_header
from lambdas.protocol.tensor_table import TensorSpec, TensorTable, shard_bounds

ROUND = "bench"
BUCKET = "bench"
POOL_VALUES = 8 * 1024**2 + 9  # odd, so that no power of two divides the circle
STRIDE = 104_729
# The paper's largest model: VGG-16 with a 10-class head, 134,301,514 parameters (arXiv:2604.22072).
VGG16_PARAMETERS = 134_301_514
# And its smallest: ResNet-18 with the same head.
RESNET18_PARAMETERS = 11_181_642


@cache
def pool() -> npt.NDArray[np.float32]:
    """The circle of values, float32, shape (POOL_VALUES,): like gradients, centred, of mixed magnitude."""
    rng = np.random.Generator(np.random.PCG64(20260422))
    values = rng.standard_normal(POOL_VALUES, dtype=np.float32)
    values *= np.exp2(rng.integers(-12, 2, POOL_VALUES, dtype=np.int8)).astype(np.float32)
    return values


def client_pieces(client: int, start: int, stop: int) -> Iterator[memoryview]:
    """The bytes start <= b < stop of one client's data section."""
    raw = pool().data.cast("B")
    while start < stop:
        at = (start + client * STRIDE * 4) % len(raw)
        count = min(stop - start, len(raw) - at)
        yield raw[at : at + count]
        start += count


def client_values(client: int, start: int, stop: int) -> npt.NDArray[np.float32]:
    """The values start <= i < stop of one client, float32, shape (stop - start,)."""
    return pool()[(np.arange(start, stop) + client * STRIDE) % POOL_VALUES]


@dataclass(frozen=True)
class Workload:
    """One shard of one round.

    Attributes:
        clients: N.
        elements: float32 values of the model.
        shards: M.
        shard: the index that is averaged.
    """

    clients: int = 20
    elements: int = VGG16_PARAMETERS
    shards: int = 16
    shard: int = 1

    @classmethod
    def of_shard_bytes(cls, clients: int, nbytes: int) -> Workload:
        """A round whose shards have `nbytes` bytes each."""
        return cls(clients=clients, elements=nbytes // 4 * 2, shards=2)

    @property
    def table(self) -> TensorTable:
        """A model of two tensors."""
        first = self.elements // 3
        return TensorTable((TensorSpec("a", "F32", (first,)), TensorSpec("b", "F32", (self.elements - first,))))

    @property
    def range(self) -> tuple[int, int]:
        """The flat indices of the shard: start and stop."""
        bounds = shard_bounds(self.table, self.shards)
        return bounds[self.shard], bounds[self.shard + 1]

    @property
    def shard_bytes(self) -> int:
        """Bytes of one client's part of the shard."""
        start, stop = self.range
        return (stop - start) * 4

    @property
    def bytes_averaged(self) -> int:
        """N times the shard."""
        return self.clients * self.shard_bytes

    def examples(self, client: int) -> int:
        """The client's weight."""
        return 100 + client

    def update_header(self, client: int) -> bytes:
        """The first bytes of a client's update."""
        return serialize_header(self.table, {"num_examples": str(self.examples(client))})

    def manifest(self) -> RoundManifest:
        """The frozen round, as `orchestrator start-round` writes it."""
        participants = []
        for client in range(self.clients):
            name, header = client_name(client), self.update_header(client)
            participants.append(
                Participant(
                    client=name,
                    key=update_key(ROUND, name),
                    etag=etag(client),
                    size=len(header) + self.table.nbytes,
                    data_offset=len(header),
                    num_examples=self.examples(client),
                    header_sha256=sha256_hex(header),
                )
            )
        return RoundManifest(
            round_id=ROUND,
            model="vgg16",
            participants=tuple(participants),
            table=self.table,
            layouts=(tuple(t.dtype for t in self.table.tensors),),
            bounds=shard_bounds(self.table, self.shards),
            output=Output("multipart", global_key("vgg16", ROUND), "bench-upload"),
            created_at=0.0,
        )

    def job(self) -> str:
        """The body of the job's SQS message."""
        return ShardJob(ROUND, sha256_hex(self.manifest().to_bytes()), self.shard).to_json()

    def reference(self, block: int = 1 << 20) -> Iterator[bytes]:
        """The averaged shard, computed simply: whole blocks, one client after the other."""
        start, stop = self.range
        total = float(sum(self.examples(c) for c in range(self.clients)))
        for first in range(start, stop, block):
            last = min(stop, first + block)
            sums = np.zeros(last - first, dtype=np.float64)
            for client in range(self.clients):
                sums = sums + np.float64(self.examples(client)) * client_values(client, first, last).astype(np.float64)
            yield (sums / total).astype(np.float32).tobytes()


def client_name(client: int) -> str:
    """Client ids whose order is the order of their numbers."""
    return f"c{client:05d}"


def etag(client: int) -> str:
    """The ETag of a client's update."""
    return f'"{client:032x}"'
