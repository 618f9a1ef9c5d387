"""Directories of the project: its root, and the state of the local environment."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def state_home() -> Path:
    """The directory for the state of one emulator: its process id, its log and its Terraform state.

    `FEDAGG_HOME` sets another directory, so that several emulators can run at the same time.
    """
    return Path(os.environ.get("FEDAGG_HOME") or ROOT / ".emulator").resolve()
