"""The paper's averaging handler, written from its description, for benchmarks.worker to compare this worker with.

Each client has uploaded M shard objects in numpy's format. The function for shard m reads the N whole objects one after
the other, loads each with `np.load`, keeps a float32 running sum, and stores the mean (arXiv:2604.22072, section on the
implementation: "sequentially", "running sum"). It is plain boto3 and numpy, neither tuned nor slowed down.
"""

from __future__ import annotations

import io
import os
from typing import Any

import boto3
import numpy as np

_s3 = boto3.client("s3")


def handler(event: dict[str, Any], context: object) -> dict[str, int]:
    """Average one shard: event = {"keys": [...], "weights": [...], "output": key}."""
    bucket = os.environ["FL_BUCKET"]
    total = np.float32(0)
    for key, weight in zip(event["keys"], event["weights"], strict=True):
        body = _s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        total += np.load(io.BytesIO(body)) * np.float32(weight)
    mean = total / np.float32(sum(event["weights"]))
    out = io.BytesIO()
    np.save(out, mean)
    _s3.put_object(Bucket=bucket, Key=event["output"], Body=out.getvalue())
    return {"clients": len(event["keys"])}
