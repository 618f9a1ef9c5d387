"""A round's report: what happened, as JSON (`rounds/R/report.json`) and as a page of text."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypedDict

from lambdas.protocol.documents import build, canonical_json, parse_object
from lambdas.protocol.fields import ModelName, RoundId, integer, one_of
from lambdas.protocol.lease import CoordinatorRecord, Process
from lambdas.protocol.limits import MAX_SHARDS
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import Result
from orchestrator.aws.deployment import Lane
from orchestrator.errors import OrchestratorError, kind_of
from orchestrator.planning.planner import predict
from orchestrator.planning.question import Account, Configuration, Question
from orchestrator.rounds.context import Attempt, Averaged
from orchestrator.rounds.norms import Norms
from orchestrator.rounds.pin import Update
from orchestrator.rounds.publish import Published
from orchestrator.rounds.queues import log_group
from orchestrator.rounds.report_page import render
from orchestrator.rounds.request import RoundRecord
from orchestrator.rounds.wait import BadUpdate

SCHEMA = 2
STATUSES = ("published", "failed", "aborted")

# Error bounds of the wire dtypes. Rounding to nearest changes a value by at most 2**-p of it, with p significant bits;
# below the smallest normal number, by at most half the distance between two subnormal numbers.
_ERROR_BOUNDS = {"BF16": (2.0**-8, 2.0**-134), "F16": (2.0**-11, 2.0**-25)}


class _Read(TypedDict):
    """What other commands read of any report."""

    round: RoundId
    model: ModelName
    status: Annotated[str, one_of(STATUSES)]
    participants: tuple[Any, ...]
    shards: Annotated[int, integer(0, MAX_SHARDS)]


class _Failed(_Read):
    error: str


class _GlobalModel(TypedDict):
    key: str


class _Published(_Read):
    global_model: _GlobalModel


@dataclass(frozen=True)
class Report:
    """What a round did. `document` is the JSON; its fields are in docs/design.md."""

    document: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Canonical JSON, as stored."""
        return canonical_json(self.document)

    @classmethod
    def from_bytes(cls, data: bytes) -> Report:
        """Parse a stored report and check what other commands read of it; else InvalidContract."""
        document = parse_object("Report", data, SCHEMA)
        build("Report", _Failed if "error" in document else _Published, document)
        return cls(document)

    def to_text(self) -> str:
        """A readable page."""
        return render(self.document)


def published(attempt: Attempt, averaged: Averaged, done: Published, late: Sequence[Update]) -> Report:
    """The report of a round that has published its global model."""
    context, manifest, lane = attempt.context, attempt.manifest, attempt.lane
    account = Account(concurrency=lane.maximum_concurrency)
    plan = predict(
        Question(manifest.table.nbytes, len(manifest.participants), account=account),
        Configuration(manifest.shards, manifest.topology, lane.memory_mb, lane.cpu_architecture),
    )
    return Report(
        {
            **head_of(context.bucket.name, manifest, "published"),
            "options": asdict(context.request),
            "coordinators": _coordinators(context.lease.coordinators),
            "norms": _norms(averaged.norms),
            "late_updates": [{"client": u.client, "bytes": u.size, "arrived_at": u.arrived_at} for u in late],
            "lane": {
                "function_name": lane.function_name,
                "memory_mb": lane.memory_mb,
                "cpu_architecture": lane.cpu_architecture,
                "maximum_concurrency": lane.maximum_concurrency,
            },
            "global_model": {"key": done.latest.key, "etag": done.latest.etag, "size": done.latest.size},
            "shard_sha256": list(done.shard_sha256),
            "seconds": {name: round(value, 3) for name, value in context.clock.seconds().items()},
            "totals": _totals(averaged.results),
            **({} if averaged.levels is None else {"levels": list(averaged.levels)}),
            "shard_results": [_result(result) for result in averaged.results],
            "redelivered": [_result(result) for result in attempt.failed_tries],
            "silent_tries": _silent_tries(lane, averaged.results, attempt.failed_tries),
            "predicted_on_aws": {"seconds": plan.predicted_seconds, "usd": plan.predicted_cost_usd},
        }
    )


def failed(attempt: Attempt, error: OrchestratorError, cause: BadUpdate) -> Report:
    """The report of a round that cannot publish: `error` because of `cause`."""
    context = attempt.context
    return Report(
        {
            **head_of(context.bucket.name, attempt.manifest, "failed"),
            "options": asdict(context.request),
            "coordinators": _coordinators(context.lease.coordinators),
            "error": str(error),
            "error_kind": kind_of(error),
            "exit_status": error.exit_status,
            "client": cause.bad[0].client if cause.bad else cause.result.client if cause.result else None,
            **(cause.result.job_name if cause.result else {"shard": None}),
            "bad": [asdict(exclusion) for exclusion in cause.bad],
        }
    )


def _totals(results: Sequence[Result]) -> dict[str, float]:
    """Sums over all jobs whose results arrived, and their largest peak memory."""
    stats = [result.stats for result in results]
    return {
        "reported_shards": len(results),
        "wall_s": round(sum(s.wall_s for s in stats), 3),
        "cpu_s": round(sum(s.cpu_s for s in stats), 3),
        "peak_rss_mb": max((s.peak_rss_mb for s in stats), default=0.0),
        "bytes_read": sum(s.bytes_read for s in stats),
        "bytes_written": sum(s.bytes_written for s in stats),
        "gets": sum(s.gets for s in stats),
        "puts": sum(s.puts for s in stats),
        "retries": sum(s.retries for s in stats),
    }


def _norms(norms: Norms | None) -> dict[str, float | None] | None:
    """Norms as JSON, which has no infinity: a norm beyond float64 becomes null."""
    return None if norms is None else {c: norm if math.isfinite(norm) else None for c, norm in norms.items()}


def aborted(bucket: str, record: RoundRecord, manifest: RoundManifest | None, coordinator: CoordinatorRecord) -> Report:
    """The report of a round that `coordinator` has aborted; without participants if no updates were pinned."""
    begin: dict[str, Any] = (
        head_of(bucket, manifest, "aborted")
        if manifest
        else {
            "schema": SCHEMA, "round": record.round_id, "model": record.model, "status": "aborted", "bucket": bucket,
            "shards": 0, "participants": [],
        }
    )  # fmt: skip
    return Report(
        {
            **begin,
            "coordinators": _coordinators(coordinator.earlier),
            "error": f"Round {record.round_id} was aborted by {coordinator.process}.",
            "aborted_by": _coordinators([coordinator.process])[0],
        }
    )


def _silent_tries(lane: Lane, results: Sequence[Result], failed_tries: Sequence[Result]) -> list[dict[str, Any]]:
    """Tries without a result: the function was killed or ran out of memory. Only its log tells more.

    A job is identified by all that names it: shard, or level and aggregator. Numbers alone would mix up different jobs.
    """
    told = collections.Counter(tuple(result.job_name.items()) for result in failed_tries)
    silent = []
    for result in results:
        tries = result.receive_count - 1 - told[tuple(result.job_name.items())]
        if tries > 0:
            silent.append({**result.job_name, "tries": tries, "log_group": log_group(lane)})
    return silent


def _coordinators(processes: Sequence[Process]) -> list[dict[str, Any]]:
    """The processes that coordinated the round, oldest first."""
    return [{"host": p.host, "pid": p.pid, "since": p.since} for p in processes]


def head_of(bucket: str, manifest: RoundManifest, status: str) -> dict[str, Any]:
    """The first fields of every report. All of them follow from the manifest."""
    return {
        "schema": SCHEMA,
        "round": manifest.round_id,
        "model": manifest.model,
        "status": status,
        "topology": manifest.topology,
        "bucket": bucket,
        "shards": manifest.shards,
        "manifest_sha256": manifest.sha256,
        "tensors_sha256": manifest.table.sha256,
        "participants": [
            {
                "client": p.client,
                "num_examples": p.num_examples,
                "bytes": p.size,
                "etag": p.etag,
                "header_sha256": p.header_sha256,
                "data_sha256": p.data_sha256,
                "stored": sorted(set(manifest.layouts[p.layout])),
            }
            for p in manifest.participants
        ],
        "excluded": [asdict(exclusion) for exclusion in manifest.excluded],
        "revision": manifest.revision,
        "total_examples": manifest.total_examples,
        "wire_loss": _wire_loss(manifest),
    }


def _wire_loss(manifest: RoundManifest) -> list[dict[str, Any]]:
    """The loss of accuracy by updates that are stored in a smaller dtype, for each such dtype.

    Gives the share of the total weight, and by how much a value of these clients may differ before it is averaged:
    relative to the value or, where that is more, absolutely.
    """
    losses = []
    for dtype, (relative, absolute) in _ERROR_BOUNDS.items():
        layouts = {
            i
            for i, layout in enumerate(manifest.layouts)
            if any(stored == dtype != t.dtype for stored, t in zip(layout, manifest.table.tensors, strict=True))
        }
        weights = [p.num_examples for p in manifest.participants if p.layout in layouts]
        if weights:
            losses.append(
                {
                    "stored": dtype,
                    "clients": len(weights),
                    "share_of_weight": sum(weights) / manifest.total_examples,
                    "relative_error_bound": relative,
                    "absolute_error_bound": absolute,
                }
            )
    return losses


def _result(result: Result) -> dict[str, Any]:
    document = asdict(result)
    for name in ("round_id", "manifest_sha256", "missing", "bad", "norms"):
        document.pop(name, None)
    return {name: value for name, value in document.items() if value is not None}
