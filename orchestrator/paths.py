"""Where this project keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def state_home() -> Path:
    """Where the local environment keeps what belongs to one emulator: process id, log, Terraform state.

    `FEDAGG_HOME` names another directory, so that several emulators can run beside each other.
    """
    return Path(os.environ.get("FEDAGG_HOME") or ROOT / ".emulator").resolve()
