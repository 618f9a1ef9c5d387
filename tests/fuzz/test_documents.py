"""Hostile documents and messages: every parser answers with the kit's own error, and with nothing else."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdas.protocol.documents import canonical_json, sha256_hex
from lambdas.protocol.keys import check_name, client_of, global_key, update_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.lease import CoordinatorRecord, Process
from lambdas.protocol.manifest import Output, RoundManifest
from lambdas.protocol.messages import AggregatorJob, Partial, ShardJob, ShardResult, parse_job
from orchestrator.aws.deployment import parse_deployment
from orchestrator.client.invitation import Invitation, Parts, expired, load_invitation, parse_invitation
from orchestrator.rounds.norms import read_norms
from orchestrator.rounds.report import Report
from orchestrator.rounds.request import RoundRecord, RoundRequest
from tests.support.hostile import changed_bytes, dumps, hostile, survives, values
from tests.support.manifests import MODEL, ROUND, Update, manifest_of, table_of

DIGEST = "0123456789abcdef" * 4
TABLE = table_of(("F32", 7), ("BF16", 3), ("I64", 1))
MANIFEST = manifest_of(
    TABLE,
    [Update(b"\0" * TABLE.nbytes, 3), Update(b"\1" * TABLE.nbytes, 9)],
    shards=3,
    output=Output("multipart", global_key(MODEL, ROUND), "upload-1"),
)
LANE = {
    "shards": 4, "queue_url": "http://q", "dead_letter_queue_url": "http://d", "function_name": "f", "memory_mb": 256,
    "timeout_s": 60, "ephemeral_storage_mb": 512, "cpu_architecture": "arm64", "topology": "grads-sharding",
    "max_receive_count": 5, "maximum_concurrency": 1000,
}  # fmt: skip
DEPLOYMENT = {
    "schema": 1, "environment": "dev", "region": "us-east-1", "bucket": "b", "endpoint_url": None,
    "result_queue_url": "http://r", "round_retention_days": 7, "lanes": {"4": LANE, "8": LANE | {"shards": 8}},
    "baselines": {"lifl": LANE | {"shards": 1}}, "baselines_refused": {"lambda-fl": "too large"},
}  # fmt: skip
PROCESS = Process("host", 7, "machine", "12", 1.5)
REPORT = {
    "schema": 2, "round": "r-1", "model": "m", "status": "published", "participants": [{"client": "a"}], "shards": 2,
    "global_model": {"key": "k", "etag": "e", "size": 9}, "shard_sha256": [DIGEST, DIGEST],
}  # fmt: skip


def _document(body: bytes | str) -> Any:
    return json.loads(body)


# Per target: a good document, and what reads it.
TARGETS: dict[str, tuple[Any, Callable[[bytes], Any]]] = {
    "manifest": (_document(MANIFEST.to_bytes()), lambda body: use(RoundManifest.from_bytes(body))),
    "shard job": (_document(ShardJob("r-1", DIGEST, 3, 1).to_json()), parse_job),
    "tree job": (
        _document(AggregatorJob("r-1", DIGEST, 1, 2, (Partial('"e"'), Partial(segment="s"))).to_json()),
        lambda body: check_tree_job(parse_job(body)),
    ),
    "result": (
        _document(
            ShardResult(
                round_id="r-1", manifest_sha256=DIGEST, shard=1, status="done", etag='"e"', sha256=DIGEST
            ).to_json()
        ),
        ShardResult.from_bytes,
    ),
    "round record": (
        _document(RoundRecord(RoundRequest("m", "r-1", 4, expect_clients=("a", "b")), 1.5).to_bytes()),
        lambda body: RoundRecord.from_bytes(body).request.quorum,
    ),
    "coordinator record": (
        _document(CoordinatorRecord("r-1", "token", PROCESS, 30.0, earlier=(PROCESS,)).to_bytes()),
        lambda body: CoordinatorRecord.from_bytes(body).to_bytes(),
    ),
    "pointer": (
        _document(LatestModel("m", "r", global_key("m", "r"), '"e"', 9, DIGEST, 1.0, 2.0).to_bytes()),
        lambda body: LatestModel.from_bytes(body).to_bytes(),
    ),
    "report": (REPORT, lambda body: read_report(Report.from_bytes(body))),
}


def use(manifest: RoundManifest) -> None:
    """What is asked of a manifest before the first byte is read."""
    assert sum(manifest.shard_nbytes(m) for m in range(manifest.shards)) == manifest.table.nbytes
    assert manifest.total_examples >= len(manifest.participants)
    assert RoundManifest.from_bytes(manifest.to_bytes()) == manifest


def check_tree_job(job: ShardJob | AggregatorJob) -> None:
    """What a worker asks of a tree's job."""
    if isinstance(job, AggregatorJob):
        for topology in ("lambda-fl", "lifl"):
            whole = manifest_of(TABLE, [Update(b"\0" * TABLE.nbytes)] * 5)
            survives("tree job", lambda a=topology, m=whole: job.check(replace(m, topology=a)))  # type: ignore[misc]


def read_report(report: Report) -> None:
    """What other commands read of a report without asking."""
    d = report.document
    assert isinstance(d["model"], str)
    assert isinstance(d["status"], str)
    assert len(d["participants"]) >= 0
    assert isinstance(d["error"] if "error" in d else d["global_model"]["key"], str)


@pytest.mark.parametrize("target", TARGETS)
def test_a_hostile_document_is_refused_in_a_sentence(target: str) -> None:
    document, read = TARGETS[target]

    @given(hostile(document))
    def run(body: bytes) -> None:
        survives(target, lambda: read(body))

    run()
    read(dumps(document))  # the good one is good


@pytest.mark.parametrize("target", TARGETS)
def test_a_document_whose_bytes_were_changed_is_refused_in_a_sentence(target: str) -> None:
    document, read = TARGETS[target]

    @given(changed_bytes(dumps(document)))
    def run(body: bytes) -> None:
        survives(f"{target}, bytes", lambda: read(body))

    run()


def test_a_hostile_terraform_output_is_refused_in_a_sentence() -> None:
    def read(body: bytes) -> None:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return  # Terraform's own JSON is read elsewhere
        deployment = parse_deployment(value)
        assert list(deployment.lanes) == sorted(deployment.lanes)
        for lane in (*deployment.lanes.values(), *deployment.baselines.values()):
            assert asdict(lane)

    @given(hostile(DEPLOYMENT))
    def run(body: bytes) -> None:
        survives("deployment output", lambda: read(body))

    run()
    read(dumps(DEPLOYMENT))


def test_a_hostile_invitation_is_refused_in_a_sentence_also_with_a_digest_that_fits() -> None:
    url = f"https://s3.example/bucket/{update_key('r-1', 'a')}?X-Amz-Signature=0"
    model_url = f"https://s3.example/bucket/{global_key('m', 'r-1')}?X-Amz-Signature=0"
    single = Invitation("r-1", "a", "m", 1.0, 2e9, 500, 100, url, url, model_url, put_url=url)
    parts = replace(single, put_url=None, parts=Parts(100, (url,) * 5, url, url))
    documents = [json.loads(invitation.to_json()) for invitation in (single, parts)]

    def signed(body: bytes) -> str:
        try:
            document = json.loads(body)
            document.pop("sha256", None)
            return json.dumps(document | {"sha256": sha256_hex(canonical_json(document))})
        except (ValueError, TypeError, AttributeError, RecursionError):
            return body.decode("utf-8", "replace")

    @given(st.sampled_from(documents).flatmap(hostile), st.booleans())
    def run(body: bytes, fits: bool) -> None:
        text = signed(body) if fits else body.decode("utf-8", "replace")
        invitation = survives("invitation", lambda: parse_invitation(text))
        if invitation is not None:
            survives("invitation", invitation.check_time)
            str(expired(invitation))
            assert all(found.startswith("https://") for found in invitation.urls())

    run()
    for document in documents:
        parse_invitation(json.dumps(document))
    survives("invitation", lambda: load_invitation("no\0file"))


def test_hostile_norms_are_unknown_norms() -> None:
    good = ShardResult(
        round_id="r-1",
        manifest_sha256=DIGEST,
        shard=0,
        status="done",
        norms=base64.b64encode(struct.pack("<2d", 4.0, 9.0)).decode(),
    )
    whole = replace(MANIFEST, bounds=(0, TABLE.elements))
    squares = st.lists(st.floats() | st.sampled_from([-1.0, math.inf, math.nan]), max_size=3)
    texts = squares.map(lambda values: base64.b64encode(struct.pack(f"<{len(values)}d", *values)).decode())

    def read(result: ShardResult) -> Any:
        return read_norms(None, whole, {0: result})  # type: ignore[arg-type]

    @given(texts | st.text(max_size=40) | changed_bytes(str(good.norms).encode()).map(lambda b: b.decode("latin-1")))
    def run(text: str) -> None:
        norms = survives("norms", lambda: read(replace(good, norms=text)))
        assert norms is None or all(norm >= 0 for norm in norms.values())

    run()
    assert list(read(good).values()) == [2.0, 3.0]


def test_a_hostile_name_never_becomes_part_of_a_key() -> None:
    @given(values() | st.text() | st.binary() | st.from_regex(r"[A-Za-z0-9._/-]{0,140}"))
    def run(name: Any) -> None:
        key = survives("name", lambda: update_key("r-1", check_name("client id", name)))
        if key is not None:
            assert key == f"rounds/r-1/updates/{name}.safetensors"
            assert "/" not in name
            assert "." not in name
            assert client_of(key) == name
        if isinstance(name, str):
            found = survives("key", lambda: client_of(name))
            assert found is None or update_key("r-1", found).endswith(name.rsplit("/", 1)[-1])

    run()
