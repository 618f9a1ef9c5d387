"""The pointer to the newest global model of a model name: `models/<model>/latest.json`."""

from __future__ import annotations

from dataclasses import dataclass

from lambdas.protocol.documents import Document
from lambdas.protocol.fields import ModelName, RoundId, Sha256, Size


@dataclass(frozen=True)
class LatestModel(Document):
    """Where the newest global model is, and which round published it.

    Attributes:
        size: bytes of the model's file.
        pinned_at: when the round was pinned (the manifest's `created_at`), seconds since the epoch. The pointer moves
            only to a round that was pinned later: a round that is resumed after its successor has published does not
            turn the model back.
        published_at: when the pointer was written, seconds since the epoch.
    """

    WHAT = "Pointer to the latest model"

    model: ModelName
    round_id: RoundId
    key: str
    etag: str
    size: Size
    tensors_sha256: Sha256
    pinned_at: float
    published_at: float
