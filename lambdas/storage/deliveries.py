"""Failed deliveries of a job: a short delay before the next one, and a time limit before Lambda's own timeout."""

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

# Seconds until a failed job is delivered again: doubled with every delivery, up to the cap.
RETRY_BASE_S = 3.0
RETRY_CAP_S = 300.0
# How long before the function's timeout a job is interrupted, so that its result can be sent: seconds, and the largest
# share of the time.
_SPARE_S = 3.0
_SPARE_SHARE = 0.1


def retry_soon(sqs: SQSClient, queue_url: str, receipt_handle: str, receive_count: int) -> None:
    """Have a failed message delivered again after some seconds, more with every delivery.

    Without this call the message stays hidden for the queue's visibility timeout, which is six times the function's
    timeout (AWS Lambda developer guide, "Implementing partial batch responses"), and the round waits for minutes.
    """
    delay = min(RETRY_CAP_S, RETRY_BASE_S * 2 ** (receive_count - 1))
    # Jobs that fail together from one cause should not return together.
    seconds = round(random.uniform(delay / 2, delay))
    try:
        sqs.change_message_visibility(QueueUrl=queue_url, ReceiptHandle=receipt_handle, VisibilityTimeout=seconds)
    except (ClientError, BotoCoreError) as error:
        log.warning("The failed job is delivered again only after the queue's visibility timeout: %s", error)


def beside(queue_url: str, arn: str) -> str:
    """The URL of the queue with this ARN, which has the account, region and endpoint of `queue_url`."""
    return f"{queue_url.rpartition('/')[0]}/{arn.rpartition(':')[2]}"


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise OutOfTime in the block shortly before `seconds` have passed.

    Lambda kills a function at its timeout, before it can send a result. The limit uses a signal, so it applies in the
    main thread only, where Lambda calls handlers. None sets no limit.
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
