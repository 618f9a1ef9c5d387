"""How a job's delivery ends when it does not succeed: soon again, and with a cause, not with a function's timeout."""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from botocore.exceptions import BotoCoreError, ClientError

from lambdas.protocol.errors import OutOfTime

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

log = logging.getLogger(__name__)

# Seconds until a failed job is delivered again: doubled with every try, up to the cap.
RETRY_BASE_S = 3.0
RETRY_CAP_S = 300.0
# What is kept of a function's time to report that the rest was not enough: seconds, and at most this share.
_SPARE_S = 3.0
_SPARE_SHARE = 0.1


def retry_soon(sqs: SQSClient, queue_url: str, receipt_handle: str, receive_count: int) -> None:
    """Let a failed message be delivered again after some seconds, more with every try.

    A failure that is only reported to Lambda stays hidden for the queue's visibility timeout, six times the function's
    timeout (AWS Lambda developer guide, "Implementing partial batch responses"): minutes that a round would wait.
    """
    delay = min(RETRY_CAP_S, RETRY_BASE_S * 2 ** (receive_count - 1))
    # Some shards' jobs fail together, from one cause; they should not come back together.
    seconds = round(random.uniform(delay / 2, delay))
    try:
        sqs.change_message_visibility(QueueUrl=queue_url, ReceiptHandle=receipt_handle, VisibilityTimeout=seconds)
    except (ClientError, BotoCoreError) as error:
        log.warning("A failed job comes back after the queue's visibility timeout, not sooner: %s", error)


def beside(queue_url: str, arn: str) -> str:
    """The URL of the queue with that ARN, which is of the same account, region and endpoint as `queue_url`'s."""
    return f"{queue_url.rpartition('/')[0]}/{arn.rpartition(':')[2]}"


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise OutOfTime in the block shortly before `seconds` are over, wherever it is.

    Without it, Lambda kills a function that takes too long, and nobody is told why. Only where signals can do that: in
    a process's main thread, which is where Lambda calls handlers.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    limit = seconds - min(_SPARE_S, seconds * _SPARE_SHARE)

    def ring(*_: object) -> NoReturn:
        raise OutOfTime(f"the function's time ran out after {limit:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(limit, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
