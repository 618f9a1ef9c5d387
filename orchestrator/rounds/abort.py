"""Aborting a round, and removing the intermediate objects of a round that has ended."""

from __future__ import annotations

from botocore.exceptions import ClientError

from lambdas.protocol.keys import global_key, partials_prefix, report_key, shards_prefix
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import create_object, delete_objects, error_code, list_objects, read_object
from orchestrator.errors import BadInput, RoundConflict
from orchestrator.rounds import lease
from orchestrator.rounds import report as reports
from orchestrator.rounds.manifest import read_manifest
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import read_record


def abort_round(bucket: Bucket, round_id: str) -> Report:
    """Abort a round: its coordinator stops, workers drop its queued jobs, and its upload and shards are removed.

    The updates and the manifest stay until they expire. The call is idempotent.

    Raises:
        BadInput: there is no such round.
        RoundConflict: the round is published, or is being published.
    """
    record = read_record(bucket, round_id)
    if record is None:
        raise BadInput(f"There is no round {round_id}. `orchestrator rounds` lists the rounds.")
    ended = read_object(bucket, report_key(round_id))
    if ended is None:
        # No coordinator can publish the round after this. Its coordinator stops at the next check of its lease.
        coordinator = lease.revoke(bucket, round_id, record.model)
        report = reports.aborted(bucket.name, record, read_manifest(bucket, round_id), coordinator)
        create_object(bucket, report_key(round_id), report.to_bytes())
    else:
        report = Report.from_bytes(ended[0])
        if report.document["status"] == "published":
            raise RoundConflict(
                f"Round {round_id} is already published, and clients may have fetched its global model. "
                "Start another round instead."
            )
    clean_up(bucket, round_id, record.model)
    return report


def clean_up(bucket: Bucket, round_id: str, model: str) -> None:
    """Abort a round's unfinished multipart uploads and delete its shard objects and partial sums."""
    key = global_key(model, round_id)
    pages = bucket.s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=key)
    for upload in [u for page in pages for u in page.get("Uploads", []) if u["Key"] == key]:
        abort_upload(bucket, key, upload["UploadId"])
    for prefix in (shards_prefix(round_id), partials_prefix(round_id)):
        delete_objects(bucket, [item["Key"] for item in list_objects(bucket, prefix)])


def abort_upload(bucket: Bucket, key: str, upload_id: str | None) -> None:
    """Abort a multipart upload, if there is one."""
    if upload_id is None:
        return
    try:
        bucket.s3.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload_id)
    except ClientError as error:
        if error_code(error) != "NoSuchUpload":
            raise
