"""What a round does at its deadline and with an invalid update. Standard library only: the command line loads it."""

from __future__ import annotations

ON_DEADLINE = ("fail", "extend")
ON_INVALID = ("fail", "exclude")
