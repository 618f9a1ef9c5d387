"""A process that dies at its n-th call to AWS, without a process: every later call raises `Killed`.

`kill_points` does the same to a process of the operating system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Killed(BaseException):
    """The process is dead."""


class Mortal:
    """An AWS client of a process that dies before or after its n-th call, counted over all of its clients."""

    def __init__(self, api: Any, life: Life) -> None:
        self._api, self._life = api, life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._api, name)
        if name == "generate_presigned_url":  # not a request
            return found
        if name == "get_paginator":
            return lambda what: _MortalPages(found(what), self._life)
        return lambda **request: self._life.call(lambda: found(**request))


@dataclass
class _MortalPages:
    pages: Any
    life: Life

    def paginate(self, **request: Any) -> list[Any]:
        return self.life.call(lambda: list(self.pages.paginate(**request)))


@dataclass
class Life:
    """The calls of a process.

    Attributes:
        left: how many calls succeed before the process dies; None: it does not die.
        after: the call at which it dies has its effect.
        dead: it has died.
    """

    left: int | None = None
    after: bool = False
    dead: bool = False

    def call(self, do: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.dead = True
                if self.after:
                    do()
                raise Killed
        return do()
