"""What a command tells the person who watches: on stderr, and progress bars only where stderr is a terminal."""

from __future__ import annotations

import sys
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


class StderrNarration(Narration):
    """The command line's."""

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], object]]:
        with tqdm(total=total, desc=label, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False) as bar:
            yield lambda count: bar.update(count)
