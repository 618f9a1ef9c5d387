"""Coordinating a round: from its open record, or from where an earlier coordinator stopped, to its report."""

from __future__ import annotations

from dataclasses import replace

from lambdas.protocol.keys import global_key, report_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.storage.bucket import Bucket
from orchestrator.aws.s3 import create_object, exists, read_object
from orchestrator.errors import OrchestratorError, QuorumMissed, RoundConflict, RoundFailed
from orchestrator.rounds import report as reports
from orchestrator.rounds.abort import clean_up
from orchestrator.rounds.averaging import averaging_of
from orchestrator.rounds.context import Attempt, Averaged, RoundContext
from orchestrator.rounds.exclusion import describe, exclude
from orchestrator.rounds.intake import collect_updates
from orchestrator.rounds.late import late_updates
from orchestrator.rounds.manifest import freeze_round, read_manifest
from orchestrator.rounds.publish import Published, publish
from orchestrator.rounds.report import Report
from orchestrator.rounds.wait import BadUpdate


def coordinate(context: RoundContext) -> Report:
    """Do the steps of a round that are left: pin its updates, average them, publish the global model, write the report.

    Raises:
        LeaseLost: another process coordinates the round.
        And what `start_round` raises.
    """
    manifest = read_manifest(context.bucket, context.round_id)
    resumed = manifest is not None
    if manifest is None:
        manifest = _pin(context)
    else:
        work = averaging_of(manifest.topology).describe(manifest)
        context.narration.say(f"Round {context.round_id} is already pinned; continuing with {work}.")
    lane = context.deployment.lane_for(manifest.topology, manifest.shards)
    attempt, averaged = _average(Attempt(context, manifest, lane, resumed))
    done = _publish(attempt, averaged)
    report = reports.published(attempt, averaged, done, late_updates(context.bucket, attempt.manifest))
    return _write(context.bucket, report)


def _pin(context: RoundContext) -> RoundManifest:
    """Wait for the round's updates, check them, and write the round's manifest.

    Raises:
        RoundConflict: an earlier round of the model had the same id.
        And what `collect_updates` raises.
    """
    request = context.request
    if exists(context.bucket, global_key(request.model, request.round_id)):
        raise RoundConflict(
            f"Model {request.model} has a global model of an earlier round {request.round_id}. Choose another round id."
        )
    pinned = collect_updates(context)
    averaging = averaging_of(request.topology)
    shards = averaging.choose_shards(request, pinned, context.deployment)
    manifest = freeze_round(context.bucket, context.record, pinned, shards)
    context.narration.say(
        f"Pinned {len(manifest.participants)} updates with {manifest.total_examples:,} examples; "
        f"{averaging.describe(manifest)}."
    )
    context.clock.mark("pinning")
    return manifest


def _average(attempt: Attempt) -> tuple[Attempt, Averaged]:
    """Average the round. When updates turn out to be bad, repeat that without their clients, if the round excludes.

    Returns:
        The attempt that succeeded, and its outcome; an empty outcome where the global model was already stored.
    """
    context = attempt.context
    while not (attempt.resumed and exists(context.bucket, attempt.manifest.output.key)):
        context.lease.check()
        try:
            return attempt, averaging_of(attempt.manifest.topology).average(attempt)
        except BadUpdate as error:
            attempt = _replan_or_end(attempt, error)
        finally:
            context.clock.mark("averaging")
    return attempt, Averaged()


def _replan_or_end(attempt: Attempt, error: BadUpdate) -> Attempt:
    """Replan the round without the clients at fault.

    Raises:
        BadUpdate, QuorumMissed, RoundFailed: the round does not exclude clients, or cannot. The round has ended then.
    """
    context, manifest = attempt.context, attempt.manifest
    ended: OrchestratorError = error
    if context.request.on_invalid == "exclude" and error.bad:
        context.lease.check()
        try:
            replanned = exclude(context.bucket, context.request, manifest, error.bad)
            context.narration.say(f"Excluded: {describe(error.bad)}. Averaging the round again without them.")
            # Nothing of the new revision is queued yet.
            return replace(attempt, manifest=replanned, resumed=False)
        except (QuorumMissed, RoundFailed) as failure:
            ended = failure
    _write(context.bucket, reports.failed(attempt, ended, error))
    clean_up(context.bucket, manifest.round_id, manifest.model)
    context.lease.mark("failed")
    raise ended


def _publish(attempt: Attempt, averaged: Averaged) -> Published:
    """Publish the global model, and remove what the round has left besides it."""
    context, manifest = attempt.context, attempt.manifest
    context.lease.mark("publishing")
    done = publish(context.bucket, manifest, averaged.digests)
    averaging_of(manifest.topology).clean_up(context.bucket, manifest.round_id)
    if context.lease.record.earlier or manifest.revision:
        # An earlier coordinator may have created an upload and ended before it wrote the manifest, and an earlier
        # revision may have stored shards.
        clean_up(context.bucket, manifest.round_id, manifest.model)
    context.clock.mark("publishing")
    return done


def _write(bucket: Bucket, report: Report) -> Report:
    """Write the round's one report. Where another process was faster, return the report that it has written."""
    key = report_key(report.document["round"])
    if create_object(bucket, key, report.to_bytes()):
        return report
    found = read_object(bucket, key)
    return Report.from_bytes(found[0]) if found else report
