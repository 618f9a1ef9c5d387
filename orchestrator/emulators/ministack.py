"""MiniStack, the default emulator: a PyPI package in this project's own virtual environment."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from orchestrator.emulators.daemon import Launch, without_aws
from orchestrator.errors import BadInput


def prepare(port: int) -> Launch:
    """How to start MiniStack on `port`.

    Raises:
        BadInput: the package is not installed.
    """
    if find_spec("ministack") is None:
        raise BadInput("The embedded emulator is not installed: pip install 'fedagg[emulator]'.")
    return Launch(
        [sys.executable, "-m", "ministack"],
        {
            **without_aws(os.environ),
            "GATEWAY_PORT": str(port),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_HOST": "127.0.0.1",
            "LAMBDA_EXECUTOR": "local",
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),  # the system's default  # noqa: S108  # nosec B108
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
        },
    )
