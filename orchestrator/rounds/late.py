"""Updates that arrive after their round was closed, and how a later round takes them over.

A late update stays in S3 and does not change its round. A later round takes it over only if `--late-from` says so: S3
copies it to that round's updates, unless the client has submitted an update to that round itself.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import Any

from botocore.exceptions import ClientError

from lambdas.protocol.keys import update_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import completed_part, error_code
from orchestrator.errors import BadInput
from orchestrator.rounds.abort import abort_upload
from orchestrator.rounds.manifest import read_manifest
from orchestrator.rounds.pin import Update, list_updates
from orchestrator.rounds.request import RoundRequest

# The size of a part of a server-side copy. S3 copies at most 5 GiB at a time.
_COPY_BYTES = 1024**3


def late_updates(bucket: Bucket, manifest: RoundManifest) -> list[Update]:
    """The updates that arrived after the round had closed, in ascending client id."""
    known = {p.client for p in manifest.participants} | {e.client for e in manifest.excluded}
    return [update for update in list_updates(bucket, manifest.round_id) if update.client not in known]


def kept_for(bucket: Bucket, request: RoundRequest) -> list[Update]:
    """The late updates that a round takes over: those of `late_from`, by clients that the round expects.

    Raises:
        BadInput: there is no round `late_from`, or it is not closed yet.
    """
    if not request.late_from:
        return []
    manifest = read_manifest(bucket, request.late_from)
    if manifest is None:
        raise BadInput(
            f"Round {request.late_from} has no late updates to take over: it is not closed, has expired, or does not "
            "exist. `orchestrator rounds` lists the rounds."
        )
    expected = request.expect_clients
    return [update for update in late_updates(bucket, manifest) if expected is None or update.client in expected]


def take_over(bucket: Bucket, round_id: str, late: Sequence[Update]) -> list[str]:
    """Copy late updates into a round. The call is idempotent.

    Returns:
        The clients whose updates were copied.
    """
    with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        copied = pool.map(lambda update: _copy(bucket, update, update_key(round_id, update.client)), late)
        return [update.client for update, done in zip(late, copied, strict=True) if done]


def _copy(bucket: Bucket, update: Update, key: str) -> bool:
    """Copy an object within S3, in parts, unless the key exists. Returns whether it was copied.

    The copy uses a multipart upload for every size: CompleteMultipartUpload takes `If-None-Match`, and CopyObject is
    limited to 5 GiB. The bucket's policy, which requires conditional writes, exempts UploadPartCopy by
    s3:ObjectCreationOperation (S3 user guide, "Enforce conditional writes").
    """
    if update.size == 0:
        return False  # An empty object is not an update, and an upload needs at least one part.
    upload_id = bucket.s3.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"]
    source: Any = {"Bucket": bucket.name, "Key": update.key}
    try:
        parts = []
        for number, start in enumerate(range(0, update.size, _COPY_BYTES), 1):
            stop = min(update.size, start + _COPY_BYTES)
            result = bucket.s3.upload_part_copy(
                Bucket=bucket.name,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                CopySource=source,
                CopySourceRange=f"bytes={start}-{stop - 1}",
                CopySourceIfMatch=update.etag,
            )["CopyPartResult"]
            parts.append(completed_part(number, result["ETag"], ChecksumCRC32=result.get("ChecksumCRC32")))
        bucket.s3.complete_multipart_upload(
            Bucket=bucket.name, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
    except BaseException as error:
        abort_upload(bucket, key, upload_id)
        # The key exists: the client has submitted an update to this round. The source does not exist or has another
        # ETag: the late update was deleted or replaced.
        if isinstance(error, ClientError) and error_code(error) in (
            "PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"
        ):  # fmt: skip
            return False
        raise
    return True
