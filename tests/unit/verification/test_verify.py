"""The SHA-256 chain of a published round: it holds, and a single changed byte anywhere is named by its link."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import safetensors.numpy
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambdas.protocol.documents import canonical_json, sha256_hex
from lambdas.protocol.errors import OtherSchema
from lambdas.protocol.keys import global_key, manifest_key, report_key, round_key, shard_key, update_key
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.safetensors import global_header
from lambdas.protocol.topologies import TREES
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.cli.main import main
from orchestrator.client.sources import from_state_dict
from orchestrator.client.submit import submit
from orchestrator.deployment import load
from orchestrator.errors import BadInput, VerificationFailed
from orchestrator.rounds import queues
from orchestrator.rounds.publish import shard_region
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round
from orchestrator.verification import shards as verified_shards
from orchestrator.verification import verify
from orchestrator.verification.result import BrokenLink, Verification
from tests.support import pinned, trees
from tests.support.rounds import LARGE, manifest_of, put, put_bytes, read, read_global, update_bytes, weights, working

SHARDS = 2
SMALL = (30, 5)
SHAPES = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["objects", "parts"])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_WAIT_S", 1)


def run_round(aws: AwsClients, deployment: Deployment, shards: int = SHARDS) -> RoundManifest:
    """Average and publish what has been submitted."""
    with working(aws, deployment, shards):
        start_round(aws, deployment, RoundRequest("digits", "r-1", shards))
    return manifest_of(aws, deployment)


def published(aws: AwsClients, deployment: Deployment, shape: tuple[int, int] = SMALL) -> RoundManifest:
    """A published round of two clients, one of them with a wire dtype."""
    put(aws, deployment, "a", weights(1, shape), 3)
    submit(aws.bucket(deployment.bucket), "r-1", "b", from_state_dict(weights(2, shape)), 5, wire="BF16")
    return run_round(aws, deployment)


def check(aws: AwsClients, deployment: Deployment, **options: Any) -> Verification:
    return verify.verify(aws.bucket(deployment.bucket), "r-1", **options)


def broken(aws: AwsClients, deployment: Deployment, **options: Any) -> list[BrokenLink]:
    """The links that do not hold; there must be some."""
    with pytest.raises(VerificationFailed) as caught:
        check(aws, deployment, **options)
    assert caught.value.exit_status == 9
    assert caught.value.details["verified"] is False
    links = [BrokenLink(**link) for link in caught.value.details["broken"]]
    assert all(link.problem in str(caught.value) for link in links[:10])
    return links


@contextlib.contextmanager
def replaced(aws: AwsClients, deployment: Deployment, key: str, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """Another object at a key, while the block runs."""
    body = read(aws, deployment, key)
    aws.s3.put_object(Bucket=deployment.bucket, Key=key, Body=change(body))
    yield
    aws.s3.put_object(Bucket=deployment.bucket, Key=key, Body=body)


def flip(position: int, bit: int) -> Callable[[bytes], bytes]:
    """One bit of one byte changed."""

    def change(body: bytes) -> bytes:
        changed = bytearray(body)
        changed[position] ^= 1 << bit
        return bytes(changed)

    return change


def for_any_byte(size: int, test: Callable[[int, int], None], *, examples: int) -> None:
    """Run `test(position, bit)` for bytes that hypothesis picks, the first and the last among them."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([0, size - 1]) | st.integers(0, size - 1), st.integers(0, 7))
    def run(position: int, bit: int) -> None:
        test(position, bit)

    run()


# --- a chain that holds --------------------------------------------------------------------------------------------


@SHAPES
def test_an_untouched_round_verifies_down_to_every_byte(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = published(aws, lanes_without_functions, shape)
    assert (manifest.output.kind == "multipart") == (shape == LARGE)
    found = check(aws, lanes_without_functions)
    assert found.to_json() == {
        "verified": True,
        "round_id": "r-1",
        "model": "digits",
        "report_sha256": sha256_hex(read(aws, lanes_without_functions, report_key("r-1"))),
        "manifest_sha256": manifest.sha256,
        "global_model_sha256": sha256_hex(read_global(aws, lanes_without_functions)),
        "updates": 2,
        "data_sections": 2,
        "shards": [0, 1],
        "not_checked": [],
        "broken": [],
    }
    assert found.to_text().startswith("Round r-1 of model digits: verified.\n")
    assert check(aws, lanes_without_functions, manifest_sha256=found.manifest_sha256).manifest_sha256


def test_a_few_shards_verify_by_their_ranges_and_it_is_said_what_was_not_checked(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = published(aws, lanes_without_functions)
    readers: list[Any] = []

    class Counted(verified_shards.UpdateReader):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            readers.append(self)

    monkeypatch.setattr(verified_shards, "UpdateReader", Counted)
    found = check(aws, lanes_without_functions, shards=[1, 1])
    assert found.shards == [1]
    assert (found.data_sections, found.global_model_sha256) == (0, None)
    assert found.not_checked == [
        "1 of 2 shards, and the values outside of the byte ranges of those that were recomputed"
    ]
    full, narrow = (
        table.byte_at(manifest.bounds[2]) - table.byte_at(manifest.bounds[1]) for table in manifest.layout_tables
    )
    assert readers[0].counts.bytes_read == full + narrow + manifest.shard_nbytes(1)


def test_verifying_needs_little_memory_whatever_the_size_of_the_model(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    published(aws, lanes_without_functions, (4 * LARGE[0], LARGE[1]))
    tracemalloc.start()
    try:
        check(aws, lanes_without_functions)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6, "the model has 42 MB, each of its two shards 21 MB"


def test_an_update_of_a_tool_that_gives_no_digest_is_named_as_unchecked(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    body = safetensors.numpy.save(weights(2), metadata={"num_examples": "3"})
    put_bytes(aws, lanes_without_functions, "b", body)
    run_round(aws, lanes_without_functions)
    found = check(aws, lanes_without_functions)
    assert found.data_sections == 1
    (sentence,) = found.not_checked
    assert sentence.startswith("the data sections of 1 updates (b)")
    with replaced(aws, lanes_without_functions, update_key("r-1", "b"), flip(len(body) - 1, 0)):
        (link, *_) = broken(aws, lanes_without_functions)
    assert (link.link, link.client) == ("update", "b")
    assert "was replaced after it was pinned" in link.problem


@pytest.mark.parametrize("tree", TREES)
def test_a_round_by_a_tree_is_averaged_again_in_the_trees_order(
    aws: AwsClients, lanes_without_functions: Deployment, tree: str
) -> None:
    trees.submit_all(aws, lanes_without_functions)
    trees.run(aws, lanes_without_functions, tree)
    found = check(aws, lanes_without_functions)
    assert (found.shards, found.data_sections) == ([0], len(trees.COUNTS))
    participant = manifest_of(aws, lanes_without_functions).participants[-1]
    with replaced(aws, lanes_without_functions, participant.key, flip(-1, 0)):
        (link,) = broken(aws, lanes_without_functions)
    assert (link.link, link.client) == ("update", participant.client)
    with replaced(aws, lanes_without_functions, global_key("digits", "r-1"), flip(-1, 0)):
        (link,) = broken(aws, lanes_without_functions)
    assert link.link == "global model"


def test_a_copy_with_the_same_bytes_breaks_nothing(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    published(aws, lanes_without_functions, LARGE)
    bucket, key = lanes_without_functions.bucket, update_key("r-1", "a")
    body, before = read(aws, lanes_without_functions, key), aws.s3.head_object(Bucket=bucket, Key=key)
    upload = aws.s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    part = aws.s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=body)
    aws.s3.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    )
    assert aws.s3.head_object(Bucket=bucket, Key=key)["ETag"] != before["ETag"]
    assert check(aws, lanes_without_functions).data_sections == 2


# --- one changed byte ----------------------------------------------------------------------------------------------


@SHAPES
def test_any_changed_byte_of_an_update_names_the_update(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = published(aws, lanes_without_functions, shape)
    participant = manifest.participants[1]

    def changed(position: int, bit: int) -> None:
        with replaced(aws, lanes_without_functions, participant.key, flip(position, bit)):
            links = broken(aws, lanes_without_functions)
        assert [(link.link, link.client, link.key) for link in links] == [("update", "b", participant.key)]
        part = "its header has SHA-256" if position < participant.data_offset else "its values have SHA-256"
        assert links[0].problem.startswith(part)

    for_any_byte(participant.size, changed, examples=25 if shape == SMALL else 4)
    check(aws, lanes_without_functions)


def test_any_changed_byte_of_the_manifest_names_the_manifest(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = published(aws, lanes_without_functions)

    def changed(position: int, bit: int) -> None:
        with replaced(aws, lanes_without_functions, manifest_key("r-1"), flip(position, bit)):
            links = broken(aws, lanes_without_functions)
        assert [link.link for link in links] == ["manifest"]

    for_any_byte(len(manifest.to_bytes()), changed, examples=40)
    check(aws, lanes_without_functions)


@SHAPES
def test_any_changed_byte_of_the_global_model_names_it_and_the_tensor(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = published(aws, lanes_without_functions, shape)
    header = len(global_header(manifest.table))

    def changed(position: int, bit: int) -> None:
        with replaced(aws, lanes_without_functions, manifest.output.key, flip(position, bit)):
            links = broken(aws, lanes_without_functions)
        assert {link.link for link in links} == {"global model"}
        if position >= header:
            tensors = manifest.table
            index = max(
                i
                for i, at in enumerate(tensors.first_byte[:-1])
                if at <= position - header and tensors.tensors[i].elements
            )
            assert f"of tensor {tensors.tensors[index].name!r} on" in links[0].problem
            (shard,) = (m for m in range(SHARDS) if position in range(*shard_region(manifest, m)))
            assert f"its bytes of shard {shard} are not those" in links[0].problem

    for_any_byte(header + manifest.table.nbytes, changed, examples=25 if shape == SMALL else 4)
    check(aws, lanes_without_functions)


@SHAPES
def test_a_changed_part_that_nobody_noticed_before_publishing_names_the_shard(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    """The worker's result, with which publishing compares, was lost; whoever could write the part changed a byte."""
    deployment, bucket = lanes_without_functions, lanes_without_functions.bucket
    manifest = pinned.averaged(aws, deployment, shape)
    output = manifest.output
    if output.upload_id is None:
        key = shard_key("r-1", 1, SHARDS)
        body = flip(2, 0)(read(aws, deployment, key))
        aws.s3.put_object(Bucket=bucket, Key=key, Body=body)
    else:
        values = pinned.expected(shape)[slice(*shard_region(manifest, 1))]
        aws.s3.upload_part(
            Bucket=bucket, Key=output.key, UploadId=output.upload_id, PartNumber=2, Body=flip(2, 0)(values),
            ChecksumAlgorithm="SHA256",
        )  # fmt: skip
    aws.sqs.purge_queue(QueueUrl=deployment.result_queue_url)
    start_round(aws, deployment, RoundRequest("digits", "r-1", SHARDS))
    (link,) = broken(aws, deployment)
    assert (link.link, link.shard) == ("shard", 1)
    assert "not the average of the pinned updates; it differs from value" in link.problem


def rewrite(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """A JSON document with something changed, canonical as before."""

    def changed(body: bytes) -> bytes:
        document = json.loads(body)
        change(document)
        return canonical_json(document)

    return changed


def test_a_report_that_says_something_else_is_named(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    published(aws, lanes_without_functions)

    def shard_digest(d: Any) -> None:
        d["shard_sha256"][1] = "0" * 64

    def weight(d: Any) -> None:
        d["participants"][0]["num_examples"] = 99

    def without(d: Any) -> None:
        del d["shard_sha256"]

    for change, words in (
        (shard_digest, "it gives SHA-256 0000"),
        (weight, "its field 'participants' is not what follows from the manifest"),
        (without, "it does not name the SHA-256 of every shard"),
    ):
        with replaced(aws, lanes_without_functions, report_key("r-1"), rewrite(change)):
            (link,) = broken(aws, lanes_without_functions)
        assert link.link == "report"
        assert words in link.problem
    for garbage in (b"", b"{}", b"[]", b'{"schema":2}', b"\xff"):
        with replaced(aws, lanes_without_functions, report_key("r-1"), lambda body, garbage=garbage: garbage):  # type: ignore[misc]
            (link,) = broken(aws, lanes_without_functions)
        assert (link.link, link.problem[:17]) == ("report", "it cannot be read")


def test_a_round_of_another_release_is_named_as_such_and_not_as_a_broken_link(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    published(aws, lanes_without_functions)
    with (
        replaced(aws, lanes_without_functions, report_key("r-1"), lambda body: b'{"schema":1}'),
        pytest.raises(OtherSchema, match="schema is 1, this version reads 2"),
    ):
        verify.verify(aws.bucket(lanes_without_functions.bucket), "r-1")


def test_a_forged_weight_is_found_although_the_report_names_the_forged_manifest(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    honest = published(aws, lanes_without_functions)

    def weight(d: Any) -> None:
        d["participants"][0]["num_examples"] = 99

    with replaced(aws, lanes_without_functions, manifest_key("r-1"), rewrite(weight)):
        forged = manifest_of(aws, lanes_without_functions)

        def agree(d: Any) -> None:
            d |= verify.reports.head_of(lanes_without_functions.bucket, forged, "published")

        with replaced(aws, lanes_without_functions, report_key("r-1"), rewrite(agree)):
            (link,) = broken(aws, lanes_without_functions)
            assert (link.link, link.client) == ("update", "a")
            assert "its example count in the manifest are not what its header says" in link.problem
            (link,) = broken(aws, lanes_without_functions, manifest_sha256=sha256_hex(honest.to_bytes()))
            assert (link.link, "you expect" in link.problem) == ("manifest", True)


def test_a_client_that_lied_about_its_digest_is_named(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    body = update_bytes(weights(2))
    truth = hashlib.sha256(body[8 + int.from_bytes(body[:8], "little") :]).hexdigest()
    put_bytes(aws, lanes_without_functions, "liar", body.replace(truth.encode(), b"0" * 64))
    run_round(aws, lanes_without_functions)
    (link,) = broken(aws, lanes_without_functions)
    assert (link.link, link.client) == ("update", "liar")
    assert "so its client wrote these values" in link.problem


def test_what_is_gone_or_has_another_length_is_named(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    manifest = published(aws, lanes_without_functions)
    bucket, key = lanes_without_functions.bucket, update_key("r-1", "a")
    for change, words in (
        (lambda body: body[:-1], "bytes, the manifest says"),
        (lambda body: body + b"\0", "bytes, the manifest says"),
        (lambda body: b"", "it was replaced"),
    ):
        with replaced(aws, lanes_without_functions, key, change):
            (link,) = broken(aws, lanes_without_functions)
            assert (link.link, link.client) == ("update", "a")
            assert words in link.problem
    for change in (lambda body: body[:-1], lambda body: b""):
        with replaced(aws, lanes_without_functions, manifest.output.key, change):
            (link,) = broken(aws, lanes_without_functions)
            assert (link.link, "bytes, expected" in link.problem) == ("global model", True)
    for gone, link_name in ((manifest.output.key, "global model"), (key, "update"), (manifest_key("r-1"), "manifest")):
        body = read(aws, lanes_without_functions, gone)
        aws.s3.delete_object(Bucket=bucket, Key=gone)
        (link,) = broken(aws, lanes_without_functions)
        aws.s3.put_object(Bucket=bucket, Key=gone, Body=body)
        assert (link.link, link.key) == (link_name, gone)
    check(aws, lanes_without_functions)


# --- what cannot be verified ---------------------------------------------------------------------------------------


def test_a_round_without_a_published_model_says_why_there_is_nothing_to_verify(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    with pytest.raises(BadInput, match=r"no round r-1, or its objects have expired.*Verify rounds while"):
        check(aws, lanes_without_functions)
    put(aws, lanes_without_functions, "a", weights(1))
    aws.s3.put_object(Bucket=lanes_without_functions.bucket, Key=round_key("r-1"), Body=b"{}")
    with pytest.raises(BadInput, match=r"it has not published yet. Run `orchestrator status --round r-1`"):
        check(aws, lanes_without_functions)
    failed = {
        "schema": 2,
        "round": "r-1",
        "model": "m",
        "status": "failed",
        "error": "x",
        "participants": [],
        "shards": 1,
    }
    aws.s3.put_object(
        Bucket=lanes_without_functions.bucket, Key=report_key("r-1"), Body=canonical_json(failed)
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"has published nothing \(failed\)"):
        check(aws, lanes_without_functions)


def test_a_shard_that_the_round_does_not_have_is_refused(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    published(aws, lanes_without_functions)
    with pytest.raises(BadInput, match="no shard 2: its 2 shards are numbered from 0"):
        check(aws, lanes_without_functions, shards=[0, 2])


def test_the_command_prints_what_it_found_and_exits_with_9_where_a_link_is_broken(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_deployment", lambda env: lanes_without_functions)
    published(aws, lanes_without_functions)

    def run(*arguments: str, status: int) -> Any:
        result = CliRunner().invoke(main, ["verify", "--round", "r-1", *arguments])
        assert result.exit_code == status, result.output
        return json.loads(result.stdout) if "json" in arguments else result.stdout + result.stderr

    assert run("--output", "json", status=0)["verified"] is True
    assert "Round r-1 of model digits: verified." in run(status=0)
    assert run("--shards", "1", "--output", "json", status=0)["shards"] == [1]
    assert "not a valid list of shards" in run("--shards", "1,x", status=2)
    assert "not a valid SHA-256" in run("--manifest-sha256", "1234", status=2)
    with replaced(aws, lanes_without_functions, update_key("r-1", "a"), flip(-1, 0)):
        answer = run("--output", "json", status=9)
        assert answer["error"]["kind"] == "VerificationFailed"
        assert [(link["link"], link["client"]) for link in answer["broken"]] == [("update", "a")]
        assert "broken: update of client a (rounds/r-1/updates/a.safetensors): its values have" in run(status=9)
