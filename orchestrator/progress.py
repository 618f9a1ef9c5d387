"""Narration: what a command reports while it runs, on stderr. Progress bars are shown only on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Narration:
    """Reports nothing; the default of the Python API."""

    def say(self, sentence: str) -> None:
        """Report a sentence."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], object]]:
        """Show a progress bar of `total` steps; yields the function that advances it by a number of steps."""
        yield lambda count: None


class StderrNarration(Narration):
    """Reports on stderr; the narration of the command line."""

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], object]]:
        if not sys.stderr.isatty():
            yield lambda count: None
            return
        from tqdm import tqdm  # the functions' zip has no tqdm

        with tqdm(total=total, desc=label, file=sys.stderr, leave=False) as bar:
            yield lambda count: bar.update(count)


@contextmanager
def elapsed_time(narration: Narration, label: str, every_s: float = 15.0) -> Iterator[None]:
    """While the block runs, report every `every_s` seconds how long it has been running."""
    done = threading.Event()
    began = time.monotonic()

    def report() -> None:
        while not done.wait(every_s):
            narration.say(f"  ... {label}: {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
