"""docs/reproduction.md is what its data and the planner say."""

from __future__ import annotations

from benchmarks import reproduction


def test_the_reproduction_page_is_current() -> None:
    assert reproduction.PAGE.read_text(encoding="utf-8") == reproduction.page(), (
        "write it again: python -m benchmarks.reproduction"
    )
