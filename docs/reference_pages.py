"""What the generators of reference pages share: tables, and writing or checking pages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write(pages: Mapping[Path, str]) -> int:
    """Write the pages; with `--check`, name those that are not current instead. Returns the exit status."""
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        if stale:
            print(f"Not current: {names}. Run `python docs/{Path(sys.argv[0]).name}`.", file=sys.stderr)
        return len(stale)
    for path in stale:
        path.write_text(pages[path])
    return 0


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in lines)
