"""`models/<model>/latest.json`: the pointer to the newest global model."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lambdas.protocol.documents import SCHEMA, Fields, canonical_json
from lambdas.protocol.limits import MAX_INT


@dataclass(frozen=True)
class LatestModel:
    """`models/<model>/latest.json`: where a model's newest global model is.

    Attributes:
        pinned_at: when its round was pinned (the manifest's `created_at`). The pointer only moves to a round that was
            pinned later, so that a round resumed after its successor does not turn the model back.
    """

    model: str
    round_id: str
    key: str
    etag: str
    size: int
    tensors_sha256: str
    pinned_at: float
    published_at: float

    def to_bytes(self) -> bytes:
        return canonical_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> LatestModel:
        f = Fields.parse("Pointer to the latest model", data)
        return cls(
            model=f.name("model", "model"),
            round_id=f.name("round_id", "round"),
            key=f.text("key"),
            etag=f.text("etag"),
            size=f.integer("size", 0, MAX_INT),
            tensors_sha256=f.digest("tensors_sha256"),
            pinned_at=f.number("pinned_at"),
            published_at=f.number("published_at"),
        )
