"""Counts the cases, and says at the end how many there were: `make fuzz` runs many, an ordinary test run a few."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.hostile import COUNTS

# Cases per target.
_CASES = int(os.environ.get("FUZZ_CASES", "20"))

settings.register_profile(
    "fuzz", max_examples=_CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(autouse=True)
def _fuzz_profile() -> Iterator[None]:
    settings.load_profile("fuzz")
    yield
    settings.load_profile("untimed")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line per target and the sum."""
    if COUNTS:
        terminalreporter.section("fuzz")
        for target, count in sorted(COUNTS.items()):
            terminalreporter.line(f"{count:>8,}  {target}")
        terminalreporter.line(f"{COUNTS.total():>8,}  cases in all")
