"""SQS in memory, with the operations that this product calls. It is deterministic and never waits.

It answers as AWS does; tests/unit/test_support.py holds it to the rules. A test that needs a fault appends to `fail`,
or overrides one operation in a subclass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support.aws import Service, client_error

# The most messages that one request takes or returns.
BATCH = 10
# The visibility timeout of a queue, seconds.
VISIBILITY_S = 30


@dataclass
class Message:
    """A message in a queue.

    Attributes:
        handle: the receipt handle of the last receive; None before the first.
        received: how often it has been received.
        hidden_s: how many seconds it stays hidden, 0 where it is visible. Time passes in `time_out` only.
    """

    body: str
    handle: str | None = None
    received: int = 0
    hidden_s: int = 0


@dataclass
class MemorySqs(Service):
    """Standard queues: every message is delivered at least once, in any order.

    Attributes:
        queues: the messages by the queue's URL, hidden ones too.
        choose: picks the next message among a number of visible ones.
        on_receive: is called with the queue's URL before each receive.
    """

    queues: dict[str, list[Message]] = field(default_factory=dict)
    choose: Callable[[int], int] = lambda count: 0
    on_receive: Callable[[str], None] = lambda url: None
    _handles: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def queue(self, url: str) -> list[Message]:
        return self.queues.setdefault(url, [])

    def bodies(self, url: str) -> list[str]:
        return [message.body for message in self.queue(url)]

    def send_message(self, *, QueueUrl: str, MessageBody: str) -> dict[str, Any]:  # noqa: N803
        self.request("send_message")
        self.queue(QueueUrl).append(Message(MessageBody))
        return {}

    def send_message_batch(self, *, QueueUrl: str, Entries: list[Any]) -> dict[str, Any]:  # noqa: N803
        self._batch("send_message_batch", Entries)
        self.queue(QueueUrl).extend(Message(entry["MessageBody"]) for entry in Entries)
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}

    def receive_message(
        self, *, QueueUrl: str, MaxNumberOfMessages: int = 1, VisibilityTimeout: int = VISIBILITY_S,  # noqa: N803
        WaitTimeSeconds: int = 0, MessageSystemAttributeNames: Any = (),  # noqa: N803
    ) -> dict[str, Any]:  # fmt: skip
        self.request("receive_message")
        self.on_receive(QueueUrl)
        taken: list[Message] = []
        while len(taken) < min(MaxNumberOfMessages, BATCH):
            visible = [message for message in self.queue(QueueUrl) if not message.hidden_s and message not in taken]
            if not visible:
                break
            message = visible[self.choose(len(visible))]
            message.received += 1
            message.handle, message.hidden_s = f"handle-{next(self._handles)}", VisibilityTimeout
            taken.append(message)
        if not taken:
            return {}
        return {
            "Messages": [
                {
                    "Body": message.body,
                    "ReceiptHandle": message.handle,
                    "Attributes": {"ApproximateReceiveCount": str(message.received)},
                }
                for message in taken
            ]
        }

    def delete_message(self, *, QueueUrl: str, ReceiptHandle: str) -> dict[str, Any]:  # noqa: N803
        self.request("delete_message")
        self._delete(QueueUrl, ReceiptHandle)
        return {}

    def delete_message_batch(self, *, QueueUrl: str, Entries: list[Any]) -> dict[str, Any]:  # noqa: N803
        self._batch("delete_message_batch", Entries)
        for entry in Entries:
            self._delete(QueueUrl, entry["ReceiptHandle"])
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}

    def change_message_visibility(self, *, QueueUrl: str, ReceiptHandle: str, VisibilityTimeout: int) -> None:  # noqa: N803
        self.request("change_message_visibility")
        self._hide(QueueUrl, ReceiptHandle, VisibilityTimeout)

    def change_message_visibility_batch(self, *, QueueUrl: str, Entries: list[Any]) -> dict[str, Any]:  # noqa: N803
        self._batch("change_message_visibility_batch", Entries)
        for entry in Entries:
            self._hide(QueueUrl, entry["ReceiptHandle"], entry["VisibilityTimeout"])
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}

    def _batch(self, operation: str, entries: list[Any]) -> None:
        self.request(operation)
        if len(entries) > BATCH:
            raise client_error("AWS.SimpleQueueService.TooManyEntriesInBatchRequest", operation)
        if len({entry["Id"] for entry in entries}) < len(entries):
            raise client_error("AWS.SimpleQueueService.BatchEntryIdsNotDistinct", operation)

    def _delete(self, url: str, handle: str) -> None:
        """Delete a message; the handle of an earlier receive deletes nothing."""
        self.queues[url] = [message for message in self.queue(url) if message.handle != handle]

    def _hide(self, url: str, handle: str, seconds: int) -> None:
        for message in self.queue(url):
            if message.handle == handle:
                message.hidden_s = seconds

    # --- what happens around the queues ---

    def time_out(self, url: str) -> None:
        """Let the visibility timeout of every message pass."""
        for message in self.queue(url):
            message.hidden_s = 0

    def duplicate(self, url: str, index: int) -> None:
        """Store a message a second time, as a standard queue may deliver it."""
        original = self.queue(url)[index]
        self.queue(url).append(Message(original.body, received=original.received))
