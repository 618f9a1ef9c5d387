"""The lifetime of the credentials that sign invitations: presigned requests end with them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class SigningCredentials:
    """How long the credentials last that sign presigned requests.

    Attributes:
        temporary: whether they expire.
        ends_at: seconds since the epoch; None if they do not expire, or if it is not known when.
    """

    temporary: bool
    ends_at: float | None


def signing_credentials(s3: S3Client) -> SigningCredentials:
    """The lifetime of the credentials with which a boto3 client signs."""
    # boto3 has no public API for a client's credentials, nor for the expiry of temporary ones.
    credentials: Any = s3._request_signer._credentials  # type: ignore[attr-defined]
    if credentials is None or credentials.get_frozen_credentials().token is None:
        return SigningCredentials(temporary=False, ends_at=None)
    ends: datetime | None = getattr(credentials, "_expiry_time", None)
    return SigningCredentials(temporary=True, ends_at=ends.timestamp() if ends else None)


def early_end(credentials: SigningCredentials, expires_s: float) -> str | None:
    """A warning if invitations can end before `expires_s` seconds, else None."""
    if not credentials.temporary:
        return None
    if credentials.ends_at is None:
        return (
            "These invitations are signed with temporary credentials that expire at an unknown time. From then on, S3 "
            "refuses the invitations."
        )
    left = credentials.ends_at - time.time()
    if left >= expires_s:
        return None
    return (
        f"These invitations end in {left / 60:.0f} minutes, with the temporary credentials that sign them, and not in "
        f"{expires_s / 60:.0f}. For longer ones, log in for a longer session or sign with a user's access keys."
    )
