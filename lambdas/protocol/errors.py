"""The errors of the kit. The class says who has to act; the message says what failed, where, and what to do next.

The orchestrator's errors derive from orchestrator.errors.OrchestratorError, which adds exit statuses.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80


def shown(value: object) -> str:
    """A value for an error message: quoted, without control characters, at most 80 characters."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class FederationError(Exception):
    """Base of every error that the kit raises on purpose; `str(error)` is a sentence for the user."""


class InvalidName(FederationError):
    """A client, round or model name that cannot be part of an object key."""


class InvalidContract(FederationError):
    """A document or message that does not have the documented form. Its job is not retried."""


class OtherSchema(InvalidContract):
    """A document of another release, which this release does not read."""


class InvalidUpdate(FederationError):
    """An update that cannot be averaged by any worker, however often it is tried.

    Attributes:
        client: the client's id; None where the file does not belong to a client yet; the first of several clients.
    """

    def __init__(self, message: str, *, client: str | None = None, each: Sequence[InvalidUpdate] = ()) -> None:
        super().__init__(message)
        self.client = client
        self._each = tuple(each)

    @property
    def each(self) -> tuple[InvalidUpdate, ...]:
        """One error per client at fault; this error where there is only one."""
        return self._each or (self,)

    @classmethod
    def of_several(cls, errors: Sequence[InvalidUpdate]) -> InvalidUpdate:
        """Combine the errors of several clients into one."""
        if len(errors) == 1:
            return errors[0]
        named = "; ".join(str(error) for error in errors[:10])
        more = f"; and {len(errors) - 10} more clients" if len(errors) > 10 else ""
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else cls
        return kind(named + more, client=errors[0].client, each=errors)


class InvalidTensorFile(InvalidUpdate):
    """The file is not a safetensors file, or its header contradicts itself or the file's length."""


class TensorTableMismatch(InvalidUpdate):
    """The update's tensors, shapes or dtypes differ from the round's tensor table."""


class NonFiniteUpdate(InvalidUpdate):
    """The update contains NaN or Inf."""


class UpdateChanged(InvalidUpdate):
    """The update was replaced or deleted after the round pinned it."""


class Superseded(FederationError):
    """The job's round has ended or has a newer manifest, so the worker drops the job."""


class PartialsMissing(FederationError):
    """Partial sums that a worker has to add up and cannot read. The coordinator has them recomputed.

    Attributes:
        aggregators: the aggregators of the level below that made them.
    """

    def __init__(self, message: str, aggregators: tuple[int, ...]) -> None:
        super().__init__(message)
        self.aggregators = aggregators


class StorageUnavailable(FederationError):
    """S3 or SQS failed after bounded retries. The queue delivers the job again."""


class OutOfTime(FederationError):
    """The function's timeout is near. The queue delivers the job again."""
