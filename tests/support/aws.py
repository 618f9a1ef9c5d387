"""What S3 and SQS in memory have in common, and errors as boto3 raises them."""

from __future__ import annotations

from dataclasses import dataclass, field

from botocore.exceptions import ClientError


def client_error(code: str, operation: str = "Operation") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": code}}, operation)


@dataclass
class Service:
    """Counts the requests and fails those that a test wants to fail.

    Attributes:
        fail: what the next requests raise, before they have any effect.
        calls: the operations, in the order of their requests.
    """

    fail: list[Exception] = field(default_factory=list, kw_only=True)
    calls: list[str] = field(default_factory=list, kw_only=True)

    def request(self, operation: str) -> None:
        self.calls.append(operation)
        if self.fail:
            raise self.fail.pop(0)
