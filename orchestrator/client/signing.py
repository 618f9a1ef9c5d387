"""The lifetime of the credentials that sign invitations: presigned requests end with them."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def credentials_end(s3: S3Client) -> float | None:
    """When the credentials expire with which a boto3 client signs, seconds since the epoch.

    Infinity if they do not expire; None if they are temporary and it is not known when they expire.
    """
    # boto3 has no public API for a client's credentials, nor for the expiry of temporary ones.
    credentials: Any = s3._request_signer._credentials  # type: ignore[attr-defined]
    if credentials is None or credentials.get_frozen_credentials().token is None:
        return math.inf
    ends: datetime | None = getattr(credentials, "_expiry_time", None)
    return ends.timestamp() if ends else None


def early_end(s3: S3Client, expires_s: float) -> str | None:
    """A warning if invitations that a client signs can end before `expires_s` seconds, else None."""
    ends_at = credentials_end(s3)
    if ends_at is None:
        return (
            "These invitations are signed with temporary credentials that expire at an unknown time. From then on, S3 "
            "refuses the invitations."
        )
    left = ends_at - time.time()
    if left >= expires_s:
        return None
    return (
        f"These invitations end in {left / 60:.0f} minutes, with the temporary credentials that sign them, and not in "
        f"{expires_s / 60:.0f}. For longer ones, log in for a longer session or sign with a user's access keys."
    )
