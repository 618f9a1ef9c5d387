"""A deployment's bucket, together with the boto3 client that reaches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Bucket:
    """A bucket and its boto3 client. Threads may share it."""

    s3: S3Client
    name: str
