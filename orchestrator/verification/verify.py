"""Following a published round's SHA-256 chain: report, manifest, each pinned update, each shard, the global model.

The manifest names the header of every update by its SHA-256, and the header names its data section: so the manifest's
digest stands for every byte that was averaged. The arithmetic is exact, so the average can be computed again here, on
any machine, and must be the same bytes as the shards that the report names and as the global model's.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from lambdas.averaging.mean import Pacing
from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import InvalidContract, InvalidUpdate
from lambdas.protocol.keys import check_name, global_key, manifest_key, report_key, round_prefix
from lambdas.protocol.manifest import Participant, RoundManifest
from lambdas.protocol.safetensors import global_header, parse_update_header
from lambdas.storage.bucket import Bucket
from lambdas.storage.updates import UpdateReader
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import error_code, list_objects, read_chunks, read_object
from orchestrator.errors import BadInput, OrchestratorError, VerificationFailed
from orchestrator.progress import Narration
from orchestrator.rounds import report as reports
from orchestrator.rounds.report import Report
from orchestrator.verification.recompute import HashedData, Published, ShardCheck, check_shard

if TYPE_CHECKING:
    pass

_SHOWN = 10


@dataclass(frozen=True)
class BrokenLink:
    """A link of the chain that does not hold.

    Attributes:
        link: `report`, `manifest`, `update`, `shard` or `global model`.
        key: the object in the bucket.
        problem: what is wrong with it, a sentence.
        client, shard: which one, where there are several.
    """

    link: str
    key: str
    problem: str
    client: str | None = None
    shard: int | None = None

    def __str__(self) -> str:
        which = f" of client {self.client}" if self.client else f" {self.shard}" if self.shard is not None else ""
        return f"{self.link}{which} ({self.key}): {self.problem}"


@dataclass
class Verification:
    """What was checked, what was not, and what does not hold.

    Attributes:
        report_sha256, manifest_sha256, global_model_sha256: as found now; None where it was not read as a whole.
        updates: how many updates' headers were checked; `data_sections`: how many were read and hashed whole.
        shards: those that were averaged again and compared.
        not_checked: sentences.
    """

    round_id: str
    model: str | None = None
    report_sha256: str | None = None
    manifest_sha256: str | None = None
    global_model_sha256: str | None = None
    updates: int = 0
    data_sections: int = 0
    shards: list[int] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    broken: list[BrokenLink] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As `--output json` prints it."""
        return {"verified": not self.broken, **asdict(self)}

    def to_text(self) -> str:
        """As people read it."""
        lines = [
            f"Round {self.round_id} of model {self.model}: "
            + ("verified." if not self.broken else f"{len(self.broken)} links of its chain are broken."),
            *(f"  broken: {link}" for link in self.broken[:_SHOWN]),
        ]
        if len(self.broken) > _SHOWN:
            lines.append(f"  and {len(self.broken) - _SHOWN} more")
        lines += [
            f"  manifest      sha256 {self.manifest_sha256}",
            f"  updates       {self.updates} headers, {self.data_sections} data sections",
            f"  shards        {len(self.shards)} averaged again and compared",
        ]
        if self.global_model_sha256:
            lines.append(f"  global model  sha256 {self.global_model_sha256}")
        return "\n".join([*lines, *(f"  not checked   {sentence}" for sentence in self.not_checked)])


def verify(
    bucket: Bucket,
    round_id: str,
    *,
    shards: Sequence[int] | None = None,
    manifest_sha256: str | None = None,
    narration: Narration | None = None,
) -> Verification:
    """Follow the chain of a published round. Only reads; needs `s3:GetObject` and `s3:ListBucket`.

    Args:
        shards: average only these again, reading only their byte ranges of the updates, and all headers. None: all of
            them, and every byte of every update is read once.
        manifest_sha256: the manifest's digest as somebody noted it elsewhere. Who can write to the bucket can forge a
            chain that holds; not one that begins with a digest kept out of reach.

    Raises:
        VerificationFailed: a link is broken; its `details` are those of the Verification.
        BadInput: there is no such round, it has not published, its objects have expired, or a shard it does not have.
    """
    run = _Run(bucket, Verification(check_name("round", round_id)), narration or Narration())
    run.follow(shards, manifest_sha256)
    if run.found.broken:
        raise VerificationFailed(run.found.to_text(), run.found.to_json())
    return run.found


class _Run:
    def __init__(self, bucket: Bucket, found: Verification, narration: Narration) -> None:
        self._bucket, self.found, self._narration = bucket, found, narration
        self._round_id = found.round_id
        self._whole = hashlib.sha256()  # of the global model's file, as far as it was read

    def follow(self, shards: Sequence[int] | None, manifest_sha256: str | None) -> None:
        report = self._report()
        manifest = self._manifest(report, manifest_sha256) if report else None
        if report is None or manifest is None:
            self.found.not_checked.append("everything that hangs on that link: updates, shards, global model")
            return
        wanted = _wanted(manifest, shards)
        digests = _reported_digests(report, manifest)
        if digests is None:
            self._break("report", report_key(self._round_id), "it does not name the SHA-256 of every shard")
        published = self._published(manifest)
        if published is not None:
            self._header_of_model(manifest, published)
        participants = self._updates(manifest)
        with self._narration.bar("averaging again", len(wanted)) as progress:
            checks = self._average(participants, manifest, wanted, published, progress)
        self._judge(checks, manifest, digests)
        if shards is not None:
            self.found.not_checked.append(
                f"{manifest.shards - len(wanted)} of {manifest.shards} shards, and the data sections outside of the "
                "ranges of those that were averaged"
            )

    def _break(self, link: str, key: str, problem: str, **which: Any) -> None:
        self.found.broken.append(BrokenLink(link, key, problem, **which))

    # -- report and manifest --

    def _report(self) -> Report | None:
        key = report_key(self._round_id)
        stored = read_object(self._bucket, key)
        if stored is None:
            raise BadInput(self._why_no_report())
        self.found.report_sha256 = sha256_hex(stored[0])
        try:
            report = Report.from_bytes(stored[0])
        except InvalidContract as error:
            self._break("report", key, f"it cannot be read: {error}")
            return None
        self.found.model = report.document["model"]
        if report.document["status"] != "published":
            raise BadInput(
                f"Round {self._round_id} has published nothing ({report.document['status']}): there is nothing to "
                "verify."
            )
        return report

    def _why_no_report(self) -> str:
        if next(list_objects(self._bucket, round_prefix(self._round_id)), None) is not None:
            return (
                f"Round {self._round_id} has no report: it has not published yet. `orchestrator status --round "
                f"{self._round_id}` says where it stands."
            )
        return (
            f"There is no round {self._round_id}, or its objects have expired: what a round averaged is kept under "
            "rounds/ for as long as the environment's round_retention_days say, its global model for good. Verify "
            "rounds while their updates are there."
        )

    def _manifest(self, report: Report, noted_sha256: str | None) -> RoundManifest | None:
        key = manifest_key(self._round_id)
        stored = read_object(self._bucket, key)
        if stored is None:
            self._break("manifest", key, "it is gone")
            return None
        found = self.found.manifest_sha256 = sha256_hex(stored[0])
        if noted_sha256 is not None and found != noted_sha256:
            self._break("manifest", key, f"its SHA-256 is {found}, you expect {noted_sha256}")
        reported = report.document.get("manifest_sha256")
        if found != reported:
            self._break(
                "manifest",
                key,
                f"its SHA-256 is {found}, the report says {str(reported)[:64]}: one of the two was changed",
            )
        if self.found.broken:
            return None
        try:
            manifest = RoundManifest.from_bytes(stored[0])
        except InvalidContract as error:
            self._break("manifest", key, f"it cannot be read: {error}")
            return None
        if manifest.round_id != self._round_id:
            self._break("manifest", key, f"it is that of round {manifest.round_id}")
            return None
        # What the report repeats of the manifest must be what the manifest says.
        for name, value in reports.head_of(self._bucket.name, manifest, "published").items():
            if report.document.get(name) != value:
                self._break(
                    "report", report_key(self._round_id), f"its field {name!r} is not what follows from the manifest"
                )
        return manifest

    # -- updates --

    def _updates(self, manifest: RoundManifest) -> list[Participant] | None:
        """Check every header. The participants with the ETags they have now; None where one is not the pinned one."""
        with (
            self._narration.bar("checking updates", len(manifest.participants)) as progress,
            concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool,
        ):

            def check(participant: Participant) -> tuple[Participant, str | None]:
                try:
                    return self._update(manifest, participant)
                finally:
                    progress(1)

            checked = list(pool.map(check, manifest.participants))
        for participant, problem in checked:
            if problem is not None:
                self._break("update", participant.key, problem, client=participant.client)
        self.found.updates = len(checked)
        unpinned = [p.client for p in manifest.participants if p.data_sha256 is None]
        if unpinned:
            self.found.not_checked.append(
                f"the data sections of {len(unpinned)} updates ({', '.join(unpinned[:_SHOWN])}): the tool that wrote "
                "them left data_sha256 out, so they are pinned by S3's ETag only"
            )
        return None if any(problem for _, problem in checked) else [participant for participant, _ in checked]

    def _update(self, manifest: RoundManifest, pinned: Participant) -> tuple[Participant, str | None]:
        try:
            response = self._bucket.s3.get_object(
                Bucket=self._bucket.name, Key=pinned.key, Range=f"bytes=0-{pinned.data_offset - 1}"
            )
        except ClientError as error:
            if error_code(error) == "NoSuchKey":
                return pinned, "it was deleted after it had been pinned"
            if error_code(error) == "InvalidRange":  # an empty object
                return pinned, f"it has no bytes, pinned were {pinned.size}: it was replaced"
            raise
        header, now = response["Body"].read(), replace(pinned, etag=response["ETag"])
        size = int(response["ContentRange"].rpartition("/")[2])
        replaced = ""
        if now.etag != pinned.etag:
            replaced = f"; it was replaced after it had been pinned (ETag {now.etag}, pinned was {pinned.etag})"
        if size != pinned.size:
            return now, f"it has {size} bytes, pinned were {pinned.size}{replaced}"
        if sha256_hex(header) != pinned.header_sha256:
            return now, f"its header has SHA-256 {sha256_hex(header)}, pinned was {pinned.header_sha256}{replaced}"
        if (problem := _header_contradicts(header, manifest, pinned)) is not None:
            return now, problem
        if replaced:
            if pinned.data_sha256 is None:
                return now, "its header is the pinned one, its values cannot be told" + replaced
            # Somebody wrote the object again: with the same bytes, as a copy to other keys does, or with others.
            digest = hashlib.sha256()
            for chunk in read_chunks(self._bucket, pinned.key, pinned.data_offset, size, now.etag):
                digest.update(chunk)
            if digest.hexdigest() != pinned.data_sha256:
                return (
                    now,
                    f"its values have SHA-256 {digest.hexdigest()}, its header says {pinned.data_sha256}{replaced}",
                )
        return now, None

    # -- shards and global model --

    def _published(self, manifest: RoundManifest) -> Published | None:
        key = global_key(manifest.model, self._round_id)
        try:
            head = self._bucket.s3.head_object(Bucket=self._bucket.name, Key=key)
        except ClientError as error:
            if error_code(error) != "NoSuchKey":
                raise
            self._break("global model", key, "it is gone")
            return None
        expected = len(global_header(manifest.table)) + manifest.table.nbytes
        if head["ContentLength"] != expected:
            self._break("global model", key, f"it has {head['ContentLength']} bytes, expected {expected}")
            return None
        return Published(key, head["ETag"], expected)

    def _average(
        self,
        participants: list[Participant] | None,
        manifest: RoundManifest,
        wanted: Sequence[int],
        published: Published | None,
        progress: Any,
    ) -> list[ShardCheck]:
        at_once = min(len(manifest.participants), Pacing().max_streams) + 1
        reader = UpdateReader(self._bucket, at_once=at_once)
        hashed = HashedData(reader.open)
        checks: list[ShardCheck] = []
        if participants is None:
            self.found.not_checked.append("the averages: they need every update as it was pinned")
        else:
            manifest = replace(manifest, participants=tuple(participants))
        try:
            for shard in wanted:
                update = hashed.open if participants else None
                checks.append(check_shard(reader, manifest, shard, update, published, self._whole))
                progress(1)
        except InvalidUpdate as error:
            raise OrchestratorError(
                f"Round {self._round_id}: an object was changed while it was read ({error}). Verify it again."
            ) from error
        finally:
            reader.close()
        if len(checks) == manifest.shards and published is not None:
            self.found.global_model_sha256 = self._whole.hexdigest()
        if participants and len(checks) == manifest.shards:
            for p in participants:
                if p.data_sha256 is None:
                    continue
                self.found.data_sections += 1
                if hashed.sha256(p.client) != p.data_sha256:
                    self._break(
                        "update",
                        p.key,
                        f"its values have SHA-256 {hashed.sha256(p.client)}, its header says {p.data_sha256}; it is "
                        "the object that was pinned, so the client wrote it so",
                        client=p.client,
                    )
        self.found.shards = [check.shard for check in checks if check.recomputed is not None]
        return checks

    def _judge(
        self,
        checks: Iterable[ShardCheck],
        manifest: RoundManifest,
        digests: Sequence[str] | None,
    ) -> None:
        key = global_key(manifest.model, self._round_id)
        for check in checks:
            reported = digests[check.shard] if digests else None
            known = check.recomputed or reported
            where = f"differs from {_place(manifest, check)}" if check.first_difference is not None else "differs"
            if check.published is not None and known is not None and check.published != known:
                if check.recomputed and check.published == reported:
                    self._break(
                        "shard", key, f"what was stored is not the average of the pinned updates; it {where}",
                        shard=check.shard,
                    )  # fmt: skip
                    continue
                self._break(
                    "global model", key, f"its bytes of shard {check.shard} are not those that were stored; it {where}"
                )  # fmt: skip
            if check.recomputed and reported and check.recomputed != reported:
                self._break(
                    "report",
                    report_key(self._round_id),
                    f"it gives SHA-256 {reported} to shard {check.shard}; the average of the pinned updates has "
                    f"{check.recomputed}",
                )

    def _header_of_model(self, manifest: RoundManifest, published: Published) -> None:
        expected = global_header(manifest.table)
        body = self._bucket.s3.get_object(
            Bucket=self._bucket.name, Key=published.key, Range=f"bytes=0-{len(expected) - 1}", IfMatch=published.etag
        )["Body"].read()
        if body != expected:
            self._break("global model", published.key, "its header is not that of the round's tensors")
        if manifest.output.upload_id is None:  # else it is part of shard 0
            self._whole.update(body)


def _header_contradicts(raw: bytes, manifest: RoundManifest, pinned: Participant) -> str | None:
    """What the manifest says otherwise than the header whose digest it gives; None where nothing."""
    try:
        header = parse_update_header(raw[8:], pinned.size)
    except InvalidUpdate as error:
        return f"its header is the pinned one and cannot be read: {error}"
    says = {
        "example count": (header.num_examples, pinned.num_examples),
        "data_sha256": (header.data_sha256, pinned.data_sha256),
        "tensors": (header.table, manifest.table),
        "stored dtypes": (header.dtypes, manifest.layouts[pinned.layout]),
    }
    for what, (mine, manifests) in says.items():
        if mine != manifests:
            return f"its {what} in the manifest are not what its header says"
    return None


def _wanted(manifest: RoundManifest, shards: Sequence[int] | None) -> list[int]:
    if shards is None:
        return list(range(manifest.shards))
    for shard in shards:
        if not 0 <= shard < manifest.shards:
            raise BadInput(
                f"Round {manifest.round_id} has no shard {shard}: its {manifest.shards} shards are numbered from 0."
            )
    return sorted(set(shards))


def _reported_digests(report: Report, manifest: RoundManifest) -> list[str] | None:
    found = report.document.get("shard_sha256")
    if not isinstance(found, list) or len(found) != manifest.shards or not all(isinstance(d, str) for d in found):
        return None
    return found


def _place(manifest: RoundManifest, check: ShardCheck) -> str:
    assert check.first_difference is not None
    table = manifest.table
    index = table.tensor_at(check.first_difference)
    return f"value {check.first_difference - table.first_element[index]} of tensor {table.tensors[index].name!r} on"
