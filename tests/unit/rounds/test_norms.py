"""L2 norms from what workers left: added up where it is sound, unknown where it is not."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from lambdas.protocol.messages import ShardResult
from lambdas.storage.bucket import Bucket
from orchestrator.rounds.norms import read_norms
from tests.support.manifests import Update, manifest_of, table_of

TABLE = table_of(("F32", 4))
MANIFEST = manifest_of(TABLE, [Update(b"\0" * 16), Update(b"\0" * 16)], shards=2)


def norms_of(*texts: str | None) -> Any:
    results = {
        shard: ShardResult(round_id="r", manifest_sha256="0" * 64, shard=shard, status="done", norms=text)
        for shard, text in enumerate(texts)
    }
    s3: Any = None
    return read_norms(Bucket(s3, "bucket"), MANIFEST, results)


def squares(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}d", *values)).decode()


def test_norms_are_the_roots_of_the_sums_over_all_shards() -> None:
    assert list(norms_of(squares(4.0, 0.0), squares(5.0, 16.0)).values()) == [3.0, 4.0]


@pytest.mark.parametrize("text", [None, "ä", "=", "abc", squares(1.0), squares(-1.0, 1.0), squares(float("nan"), 1.0)])
def test_norms_that_no_worker_sends_are_unknown(text: str | None) -> None:
    assert norms_of(squares(4.0, 0.0), text) is None
