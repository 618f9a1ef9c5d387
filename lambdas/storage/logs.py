"""Keeps presigned URLs, signatures and session tokens out of the logs."""

from __future__ import annotations

import logging

# At DEBUG, botocore logs canonical requests, signatures and headers, and urllib3 logs the paths of presigned URLs.
_LIBRARIES = ("boto3", "botocore", "urllib3", "s3transfer")


def keep_secrets_out() -> None:
    """Keep these libraries at INFO even if the program sets its root logger to DEBUG.

    A level that is set on such a logger itself is not changed, so boto3.set_stream_logger still works.
    """
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
