"""Follows a published round's SHA-256 chain: report, manifest, each pinned update, each shard, the global model.

The manifest has the SHA-256 of every update's header, and the header has that of its data section, so the manifest's
SHA-256 covers every byte that was averaged. The arithmetic is exact: averages that are recomputed here, on any machine,
are the same bytes as the shards that the report names and as the global model's.
"""

from __future__ import annotations

from collections.abc import Sequence

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import InvalidContract, OtherSchema
from lambdas.protocol.keys import check_name, manifest_key, report_key, round_prefix
from lambdas.protocol.manifest import RoundManifest
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import list_objects, read_object
from orchestrator.errors import BadInput, VerificationFailed
from orchestrator.progress import Narration
from orchestrator.rounds import report as reports
from orchestrator.rounds.report import Report
from orchestrator.verification.result import BrokenLink, Verification
from orchestrator.verification.shards import ShardVerifier
from orchestrator.verification.updates import check_updates


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
        shards: recompute only these, which reads their byte ranges of the updates and all headers. None: recompute all
            shards, which reads every byte of every update once.
        manifest_sha256: the manifest's SHA-256, as it was recorded outside of the bucket. Whoever can write to the
            bucket can forge a chain that holds, but not one that begins with this value.

    Raises:
        VerificationFailed: a link is broken; its `details` are the fields of the Verification.
        BadInput: the round does not exist, has not published, has expired, or does not have one of the shards.
    """
    found = Verification(check_name("round", round_id))
    _follow(bucket, found, shards, manifest_sha256, narration or Narration())
    if found.broken:
        raise VerificationFailed(found.to_text(), found.to_json())
    return found


def _follow(
    bucket: Bucket,
    found: Verification,
    shards: Sequence[int] | None,
    manifest_sha256: str | None,
    narration: Narration,
) -> None:
    report = _report(bucket, found)
    manifest = _manifest(bucket, found, report, manifest_sha256) if report else None
    if report is None or manifest is None:
        found.not_checked.append("everything that depends on that link: updates, shards, global model")
        return
    wanted = _wanted(manifest, shards)
    digests = _reported_digests(report, manifest)
    if digests is None:
        _break(found, "report", "it does not name the SHA-256 of every shard")
    verifier = ShardVerifier(bucket, manifest, found)
    participants = check_updates(bucket, manifest, found, narration)
    with narration.bar("recomputing", len(wanted)) as progress:
        verifier.check(wanted, participants, digests, progress)
    if shards is not None:
        found.not_checked.append(
            f"{manifest.shards - len(wanted)} of {manifest.shards} shards, and the values outside of the byte ranges "
            "of those that were recomputed"
        )


def _break(found: Verification, link: str, problem: str) -> None:
    """Record that the report or the manifest is broken."""
    key = report_key(found.round_id) if link == "report" else manifest_key(found.round_id)
    found.broken.append(BrokenLink(link, key, problem))


def _report(bucket: Bucket, found: Verification) -> Report | None:
    stored = read_object(bucket, report_key(found.round_id))
    if stored is None:
        raise BadInput(_why_no_report(bucket, found.round_id))
    found.report_sha256 = sha256_hex(stored[0])
    try:
        report = Report.from_bytes(stored[0])
    except OtherSchema:
        raise  # the round of another release is not a broken link
    except InvalidContract as error:
        _break(found, "report", f"it cannot be read: {error}")
        return None
    found.model = report.document["model"]
    if report.document["status"] != "published":
        raise BadInput(
            f"Round {found.round_id} has published nothing ({report.document['status']}): there is nothing to verify."
        )
    return report


def _why_no_report(bucket: Bucket, round_id: str) -> str:
    if next(list_objects(bucket, round_prefix(round_id)), None) is not None:
        return (
            f"Round {round_id} has no report: it has not published yet. Run `orchestrator status --round {round_id}` "
            "to see its state."
        )
    return (
        f"There is no round {round_id}, or its objects have expired: objects under rounds/ are kept for the "
        "environment's round_retention_days, global models without limit. Verify rounds while their updates are stored."
    )


def _manifest(bucket: Bucket, found: Verification, report: Report, noted_sha256: str | None) -> RoundManifest | None:
    stored = read_object(bucket, manifest_key(found.round_id))
    if stored is None:
        _break(found, "manifest", "it does not exist any more")
        return None
    sha256 = found.manifest_sha256 = sha256_hex(stored[0])
    if noted_sha256 is not None and sha256 != noted_sha256:
        _break(found, "manifest", f"its SHA-256 is {sha256}, you expect {noted_sha256}")
    reported = report.document.get("manifest_sha256")
    if sha256 != reported:
        problem = f"its SHA-256 is {sha256}, the report says {str(reported)[:64]}: one of the two was changed"
        _break(found, "manifest", problem)
    if found.broken:
        return None
    try:
        manifest = RoundManifest.from_bytes(stored[0])
    except InvalidContract as error:
        _break(found, "manifest", f"it cannot be read: {error}")
        return None
    if manifest.round_id != found.round_id:
        _break(found, "manifest", f"it is that of round {manifest.round_id}")
        return None
    # The report repeats fields of the manifest, which have to be equal.
    for name, value in reports.head_of(bucket.name, manifest, "published").items():
        if report.document.get(name) != value:
            _break(found, "report", f"its field {name!r} is not what follows from the manifest")
    return manifest


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
