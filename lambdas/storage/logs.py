"""What may not get into a log: presigned URLs, signatures, session tokens."""

from __future__ import annotations

import logging

# At DEBUG botocore logs canonical requests, signatures and headers, and urllib3 the paths of presigned URLs.
_TALKATIVE = ("boto3", "botocore", "urllib3", "s3transfer")


def keep_secrets_out() -> None:
    """Hold these libraries at INFO where a program sets its root logger to DEBUG, as training scripts do.

    A level that somebody has set on such a logger itself stays: boto3.set_stream_logger still works.
    """
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
