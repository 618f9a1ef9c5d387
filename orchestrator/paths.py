"""Directories of the project: its root, and the state of the local environment."""

from __future__ import annotations

import os
from pathlib import Path


def _root() -> Path:
    """The checkout: of this package, or, if that is installed elsewhere, the one around the current directory."""
    home = Path(__file__).resolve().parent.parent
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was deleted
        return home
    candidates = (home, here, *here.parents)
    return next((path for path in candidates if (path / "environments" / "shared" / "main.tf").is_file()), home)


# Without a checkout, the directory in which the package is installed.
ROOT = _root()


def state_home() -> Path:
    """The directory for the state of one emulator: its process id, its log and its Terraform state.

    `FEDAGG_HOME` sets another directory, so that several emulators can run at the same time.
    """
    return Path(os.environ.get("FEDAGG_HOME") or ROOT / ".emulator").resolve()
