"""The pointer to the newest global model."""

from __future__ import annotations

from lambdas.protocol.latest_model import LatestModel
from tests.support.examples import DIGEST


def test_the_latest_pointer_is_pinned_literally() -> None:
    latest = LatestModel("digits", "r-1", "models/digits/r-1/global.safetensors", '"e"', 9, DIGEST, 1.5, 2.5)
    assert latest.to_bytes().decode() == (
        '{"etag":"\\"e\\"","key":"models/digits/r-1/global.safetensors","model":"digits","pinned_at":1.5,'
        '"published_at":2.5,"round_id":"r-1","schema":1,"size":9,"tensors_sha256":"' + DIGEST + '"}'
    )
    assert LatestModel.from_bytes(latest.to_bytes()) == latest
