"""Checks the updates of a closed round: each is the pinned object, and its header agrees with the manifest."""

from __future__ import annotations

import concurrent.futures
import hashlib
from dataclasses import replace

from botocore.exceptions import ClientError

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import InvalidUpdate
from lambdas.protocol.manifest import Participant, RoundManifest
from lambdas.protocol.safetensors import parse_update_header
from lambdas.storage.bucket import Bucket
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import error_code, read_chunks
from orchestrator.progress import Narration
from orchestrator.verification.result import BrokenLink, Verification

_SHOWN = 10


def check_updates(
    bucket: Bucket, manifest: RoundManifest, found: Verification, narration: Narration
) -> list[Participant] | None:
    """Check the header of every update.

    Returns:
        The participants with their present ETags; None if an update is not the pinned one.
    """
    with (
        narration.bar("checking updates", len(manifest.participants)) as progress,
        concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool,
    ):

        def check(participant: Participant) -> tuple[Participant, str | None]:
            try:
                return _check_update(bucket, manifest, participant)
            finally:
                progress(1)

        checked = list(pool.map(check, manifest.participants))
    for participant, problem in checked:
        if problem is not None:
            found.broken.append(BrokenLink("update", participant.key, problem, client=participant.client))
    found.updates = len(checked)
    unpinned = [p.client for p in manifest.participants if p.data_sha256 is None]
    if unpinned:
        found.not_checked.append(
            f"the data sections of {len(unpinned)} updates ({', '.join(unpinned[:_SHOWN])}): the tool that wrote them "
            "left data_sha256 out, so they are pinned by S3's ETag only"
        )
    return None if any(problem for _, problem in checked) else [participant for participant, _ in checked]


def _check_update(bucket: Bucket, manifest: RoundManifest, pinned: Participant) -> tuple[Participant, str | None]:
    """The participant with its present ETag, and what is wrong with its update."""
    try:
        response = bucket.s3.get_object(Bucket=bucket.name, Key=pinned.key, Range=f"bytes=0-{pinned.data_offset - 1}")
    except ClientError as error:
        if error_code(error) == "NoSuchKey":
            return pinned, "it was deleted after it was pinned"
        if error_code(error) == "InvalidRange":  # an empty object
            return pinned, f"it has no bytes, the manifest says {pinned.size}: it was replaced"
        raise
    header, now = response["Body"].read(), replace(pinned, etag=response["ETag"])
    size = int(response["ContentRange"].rpartition("/")[2])
    replaced = ""
    if now.etag != pinned.etag:
        replaced = f"; it was replaced after it was pinned (its ETag is {now.etag}, the manifest says {pinned.etag})"
    if size != pinned.size:
        return now, f"it has {size} bytes, the manifest says {pinned.size}{replaced}"
    if sha256_hex(header) != pinned.header_sha256:
        return now, f"its header has SHA-256 {sha256_hex(header)}, the manifest says {pinned.header_sha256}{replaced}"
    if (problem := _header_contradicts(header, manifest, pinned)) is not None:
        return now, problem
    return now, _values_differ(bucket, now, replaced) if replaced else None


def _values_differ(bucket: Bucket, now: Participant, replaced: str) -> str | None:
    """What is wrong with an object that was written again: a copy has the same bytes, another object does not."""
    if now.data_sha256 is None:
        return "its header is the pinned one, its values cannot be checked" + replaced
    digest = hashlib.sha256()
    for chunk in read_chunks(bucket, now.key, now.data_offset, now.size, now.etag):
        digest.update(chunk)
    if digest.hexdigest() != now.data_sha256:
        return f"its values have SHA-256 {digest.hexdigest()}, its header says {now.data_sha256}{replaced}"
    return None


def _header_contradicts(raw: bytes, manifest: RoundManifest, pinned: Participant) -> str | None:
    """The field in which the manifest contradicts the header that it pins; None if they agree."""
    try:
        header = parse_update_header(raw[8:], pinned.size)
    except InvalidUpdate as error:
        return f"its header is the pinned one and cannot be read: {error}"
    fields = {
        "example count": (header.num_examples, pinned.num_examples),
        "data_sha256": (header.data_sha256, pinned.data_sha256),
        "tensors": (header.table, manifest.table),
        "stored dtypes": (header.dtypes, manifest.layouts[pinned.layout]),
    }
    for what, (in_header, in_manifest) in fields.items():
        if in_header != in_manifest:
            return f"its {what} in the manifest are not what its header says"
    return None
