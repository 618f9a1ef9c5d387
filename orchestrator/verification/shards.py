"""Recomputes the shards of a published round and compares them with the report and the global model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from botocore.exceptions import ClientError

from lambdas.averaging.pacing import Pacing
from lambdas.protocol.errors import InvalidUpdate
from lambdas.protocol.keys import global_key, report_key
from lambdas.protocol.manifest import Participant, RoundManifest
from lambdas.protocol.safetensors import global_header
from lambdas.storage.bucket import Bucket
from lambdas.storage.updates import UpdateReader
from orchestrator.aws.s3 import error_code
from orchestrator.errors import OrchestratorError
from orchestrator.verification.recompute import HashedData, Published, ShardCheck, check_shard
from orchestrator.verification.result import BrokenLink, Verification


class ShardVerifier:
    """Checks the global model of one round, shard by shard.

    Args:
        found: gets what was checked, and the broken links.
    """

    def __init__(self, bucket: Bucket, manifest: RoundManifest, found: Verification) -> None:
        self._bucket, self._manifest, self._found = bucket, manifest, found
        self._key = global_key(manifest.model, manifest.round_id)
        self._whole = hashlib.sha256()  # of the bytes of the global model that were read so far
        self._published = self._find_published()

    def check(
        self,
        wanted: Sequence[int],
        participants: Sequence[Participant] | None,
        reported: Sequence[str] | None,
        progress: Callable[[int], object],
    ) -> None:
        """Recompute shards and compare them with the report and the global model.

        Args:
            participants: with their present ETags; None: an update is broken, so shards are not recomputed.
            reported: the report's SHA-256 of every shard; None if it does not have them all.
        """
        if participants is None:
            self._found.not_checked.append("the averages: they need every update as it was pinned")
        checks = self._recompute(wanted, participants, progress)
        for check in checks:
            self._judge(check, reported[check.shard] if reported else None)

    def _find_published(self) -> Published | None:
        """The global model, after a check of its size and its header; None if it does not have the right size."""
        table = self._manifest.table
        header = global_header(table)
        expected = len(header) + table.nbytes
        try:
            head = self._bucket.s3.head_object(Bucket=self._bucket.name, Key=self._key)
        except ClientError as error:
            if error_code(error) != "NoSuchKey":
                raise
            self._break("global model", "it does not exist any more")
            return None
        if head["ContentLength"] != expected:
            self._break("global model", f"it has {head['ContentLength']} bytes, expected {expected}")
            return None
        start = self._bucket.s3.get_object(
            Bucket=self._bucket.name, Key=self._key, Range=f"bytes=0-{len(header) - 1}", IfMatch=head["ETag"]
        )["Body"].read()
        if start != header:
            self._break("global model", "its header is not that of the round's tensors")
        if self._manifest.output.upload_id is None:  # else the header is part of shard 0
            self._whole.update(start)
        return Published(self._key, head["ETag"], expected)

    def _recompute(
        self, wanted: Sequence[int], participants: Sequence[Participant] | None, progress: Callable[[int], object]
    ) -> list[ShardCheck]:
        manifest = replace(self._manifest, participants=tuple(participants)) if participants else self._manifest
        reader = UpdateReader(self._bucket, at_once=min(len(manifest.participants), Pacing().max_streams) + 1)
        hashed = HashedData(reader.open)
        checks: list[ShardCheck] = []
        try:
            for shard in wanted:
                update = hashed.open if participants else None
                checks.append(check_shard(reader, manifest, shard, update, self._published, self._whole))
                progress(1)
        except InvalidUpdate as error:
            raise OrchestratorError(
                f"Round {manifest.round_id}: an object was changed while it was read ({error}). Verify it again."
            ) from error
        finally:
            reader.close()
        if len(checks) == manifest.shards:
            if self._published is not None:
                self._found.global_model_sha256 = self._whole.hexdigest()
            self._check_data(participants or (), hashed)
        self._found.shards = [check.shard for check in checks if check.recomputed is not None]
        return checks

    def _check_data(self, participants: Sequence[Participant], hashed: HashedData) -> None:
        """Compare the SHA-256 of every data section, all of which was read, with its update's header."""
        for p in participants:
            if p.data_sha256 is None:
                continue
            self._found.data_sections += 1
            if hashed.sha256(p.client) != p.data_sha256:
                problem = (
                    f"its values have SHA-256 {hashed.sha256(p.client)}, its header says {p.data_sha256}; it is the "
                    "pinned object, so its client wrote these values"
                )
                self._found.broken.append(BrokenLink("update", p.key, problem, client=p.client))

    def _judge(self, check: ShardCheck, reported: str | None) -> None:
        known = check.recomputed or reported
        where = "differs"
        if check.first_difference is not None:
            where = f"differs from {_place(self._manifest, check.first_difference)}"
        if check.published is not None and known is not None and check.published != known:
            if check.recomputed and check.published == reported:
                problem = f"what was stored is not the average of the pinned updates; it {where}"
                self._found.broken.append(BrokenLink("shard", self._key, problem, shard=check.shard))
                return
            self._break("global model", f"its bytes of shard {check.shard} are not those that were stored; it {where}")
        if check.recomputed and reported and check.recomputed != reported:
            problem = (
                f"it gives SHA-256 {reported} to shard {check.shard}; the average of the pinned updates has "
                f"{check.recomputed}"
            )
            self._found.broken.append(BrokenLink("report", report_key(self._manifest.round_id), problem))

    def _break(self, link: str, problem: str) -> None:
        self._found.broken.append(BrokenLink(link, self._key, problem))


def _place(manifest: RoundManifest, element: int) -> str:
    table = manifest.table
    index = table.tensor_at(element)
    return f"value {element - table.first_element[index]} of tensor {table.tensors[index].name!r} on"
