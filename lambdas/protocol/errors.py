"""The error tree of the kit. Each class says who has to act; each message says what, where and what to do next.

    FederationError                 anything that this kit raises on purpose
    ├── InvalidName                 a client, round or model name that cannot be part of a key
    ├── InvalidContract             a manifest, job, result or round record that does not parse (never retried)
    ├── InvalidUpdate               one client's update cannot be averaged (never retried: the bytes are wrong)
    │   ├── InvalidTensorFile       not a safetensors file, or one whose header contradicts itself
    │   ├── TensorTableMismatch     other tensors, shapes or dtypes than the round's
    │   ├── NonFiniteUpdate         NaN or Inf among the values
    │   └── UpdateChanged           replaced or deleted after it was pinned
    ├── Superseded                  the job belongs to a round that has finished, or to an older manifest: drop it
    ├── OutOfTime                   the function's time is nearly over: let the queue deliver the job again
    ├── PartialsMissing             a tree's partial sums cannot be had here: the round has them made again
    └── StorageUnavailable          S3 or SQS kept failing after bounded retries: let the queue deliver the job again

The command line adds its own branch, orchestrator.errors.OrchestratorError, with exit statuses.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80


def shown(value: object) -> str:
    """A value as an error's message shows it: quoted, without control characters, and short whatever it is."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class FederationError(Exception):
    """Base of every error that the kit raises on purpose; `str(error)` is the sentence a user needs."""


class InvalidName(FederationError):
    """A client, round or model name that cannot be part of an object key."""


class InvalidContract(FederationError):
    """A manifest, job, result or round record that does not have the documented form."""


class InvalidUpdate(FederationError):
    """An update that cannot be averaged, whoever tries and however often.

    Attributes:
        client: the client's id, or None where the file is not yet a client's; the first, where several are at fault.
    """

    def __init__(self, message: str, *, client: str | None = None, each: Sequence[InvalidUpdate] = ()) -> None:
        super().__init__(message)
        self.client = client
        self._each = tuple(each)

    @property
    def each(self) -> tuple[InvalidUpdate, ...]:
        """One error per client where several are at fault, else this one."""
        return self._each or (self,)

    @classmethod
    def of_several(cls, errors: Sequence[InvalidUpdate]) -> InvalidUpdate:
        """One error for all of them."""
        if len(errors) == 1:
            return errors[0]
        named = "; ".join(str(error) for error in errors[:10])
        more = f"; and {len(errors) - 10} more clients" if len(errors) > 10 else ""
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else cls
        return kind(named + more, client=errors[0].client, each=errors)


class InvalidTensorFile(InvalidUpdate):
    """Not a safetensors file, or one whose header contradicts itself or the file's length."""


class TensorTableMismatch(InvalidUpdate):
    """The update's tensors, shapes or dtypes differ from the round's tensor table."""


class NonFiniteUpdate(InvalidUpdate):
    """NaN or Inf among the values of an update."""


class UpdateChanged(InvalidUpdate):
    """The update was replaced or deleted after the round had pinned it."""


class Superseded(FederationError):
    """The job's round has finished, or has a newer manifest: there is nothing left to do."""


class PartialsMissing(FederationError):
    """Partial sums of a tree that cannot be read where their sum is to be made.

    Attributes:
        aggregators: whose, of the level below.
    """

    def __init__(self, message: str, aggregators: tuple[int, ...]) -> None:
        super().__init__(message)
        self.aggregators = aggregators


class StorageUnavailable(FederationError):
    """S3 or SQS kept failing after bounded retries; a later delivery of the same job may succeed."""


class OutOfTime(FederationError):
    """The time that the function has for a job is nearly over."""
