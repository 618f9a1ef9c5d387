"""Sets the number of cases per target (FUZZ_CASES), and prints at the end how many ran."""

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
    """Print a line per target and the sum."""
    if COUNTS:
        terminalreporter.section("fuzz")
        for target, count in sorted(COUNTS.items()):
            terminalreporter.line(f"{count:>8,}  {target}")
        terminalreporter.line(f"{COUNTS.total():>8,}  cases in all")
