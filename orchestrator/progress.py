"""What a command tells the person who watches: on stderr, and progress bars only where stderr is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Narration:
    """Says nothing; the Python API's default."""

    def say(self, sentence: str) -> None:
        """Tell what happens."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], object]]:
        """A progress bar; yields the function that moves it by so many."""
        yield lambda count: None


@contextmanager
def still_at_it(narration: Narration, what: str, every_s: float = 15.0) -> Iterator[None]:
    """While something long and silent runs, say every so often for how long it has been running."""
    done = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not done.wait(every_s):
            narration.say(f"  ... {what}: {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class StderrNarration(Narration):
    """The command line's."""

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], object]]:
        with tqdm(total=total, desc=label, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False) as bar:
            yield lambda count: bar.update(count)
