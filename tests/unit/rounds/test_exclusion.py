"""Updates that cannot be averaged: excluded from every shard of a round, or the end of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lambdas.protocol.keys import manifest_key, report_key, update_key
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import QuorumMissed, RoundFailed
from orchestrator.rounds import coordinator, queues, quorum, sharded, wait
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import resume_round, start_round
from orchestrator.rounds.status import round_status
from tests.support.rounds import (
    LARGE,
    StateDict,
    expected_file,
    file_bytes,
    manifest_of,
    objects,
    put,
    put_bytes,
    queued,
    read,
    read_global,
    update_bytes,
    uploads,
    weights,
    working,
)

SMALL = (3, 5)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_WAIT_S", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(quorum, "_POLL_S", (0.1, 0.2))
    monkeypatch.setattr(sharded, "VERDICTS_S", 1.0)


def good(shape: tuple[int, int] = SMALL) -> dict[str, tuple[StateDict, int]]:
    return {"a": (weights(1, shape), 5), "c": (weights(3, shape), 2)}


def submit_good(aws: AwsClients, deployment: Deployment, shape: tuple[int, int] = SMALL) -> bytes:
    for client, (values, examples) in good(shape).items():
        put(aws, deployment, client, values, examples)
    return expected_file(good(shape))


def run(aws: AwsClients, deployment: Deployment, shards: int = 2, **fields: Any) -> dict[str, Any]:
    fields = {"on_invalid": "exclude", "timeout_s": 30.0, **fields}
    request = RoundRequest("digits", "r-1", shards, **fields)
    return dict(start_round(aws, deployment, request).document)


def spoilt(tensor: str, value: float, shape: tuple[int, int] = SMALL, at: int = 0) -> StateDict:
    values = weights(9, shape)
    values[tensor] = values[tensor].copy()
    values[tensor].reshape(-1)[at] = value
    return values


def reasons(document: dict[str, Any]) -> dict[str, str]:
    return {e["client"]: e["reason"] for e in document["excluded"]}


def stays_clean(aws: AwsClients, deployment: Deployment) -> bool:
    return uploads(aws, deployment) == 0 and objects(aws, deployment, "rounds/r-1/shards/") == []


# --- what is wrong with an update's header -------------------------------------------------------------------------


def claiming(examples: str) -> bytes:
    body = update_bytes(weights(4), 7)
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    header["__metadata__"]["num_examples"] = examples
    return file_bytes(header, body[8 + length :])


HEADERS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "another tensor table": (lambda: update_bytes(weights(4, (5, 3))), "TensorTableMismatch", "has shape [5, 3]"),
    "truncated": (lambda: update_bytes(weights(4))[:-7], "InvalidTensorFile", "truncated or padded"),
    "oversized": (lambda: update_bytes(weights(4)) + b"\0" * 9, "InvalidTensorFile", "truncated or padded"),
    "absurd example count": (
        lambda: claiming("999999999999"),
        "InvalidUpdate",
        "an example count of 999999999999 is not a valid weight",
    ),
    "more examples than the round believes": (
        lambda: update_bytes(weights(4), 10_001),
        "InvalidUpdate",
        "an example count of 10001 is above the largest of 10000",
    ),
    "not a safetensors file": (lambda: b"\xff" * 100, "InvalidTensorFile", "not a safetensors file"),
    "empty": (lambda: b"", "InvalidTensorFile", "not a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", list(HEADERS))
def test_a_client_whose_file_is_bad_is_left_out_when_the_round_closes(
    aws: AwsClients, lanes_without_functions: Deployment, spoil: str
) -> None:
    expected = submit_good(aws, lanes_without_functions)
    make, kind, words = HEADERS[spoil]
    put_bytes(aws, lanes_without_functions, "b", make())
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions, max_examples=10_000)
    assert read_global(aws, lanes_without_functions) == expected
    (excluded,) = report["excluded"]
    assert (excluded["client"], excluded["kind"]) == ("b", kind)
    assert words in excluded["reason"]
    assert [p["client"] for p in report["participants"]] == ["a", "c"]
    assert report["revision"] == 0


def test_in_a_models_first_round_the_odd_one_out_is_excluded_even_if_it_comes_first(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    expected = submit_good(aws, lanes_without_functions)
    put(aws, lanes_without_functions, "a-0", weights(4, (5, 3)))
    put(aws, lanes_without_functions, "A", weights(4, (9, 9)))
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions)
    assert sorted(reasons(report)) == ["A", "a-0"]
    assert read_global(aws, lanes_without_functions) == expected


def test_bad_files_do_not_count_for_the_quorum_and_others_are_waited_for(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    import threading

    put(aws, lanes_without_functions, "a", good()["a"][0], 5)
    put_bytes(aws, lanes_without_functions, "b", b"rubbish!")
    later = threading.Timer(1.0, put, (aws, lanes_without_functions, "c", good()["c"][0], 2))
    later.start()
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions, min_clients=2, deadline_s=30.0)
    assert [p["client"] for p in report["participants"]] == ["a", "c"]
    assert list(reasons(report)) == ["b"]


def test_below_the_quorum_the_round_stays_open_and_says_who_cannot_be_averaged(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    submit_good(aws, lanes_without_functions)
    put_bytes(aws, lanes_without_functions, "b", b"rubbish!")
    with pytest.raises(
        QuorumMissed, match=r"has 2 of the 3 updates.*These cannot be averaged: client b \(not a safetensors"
    ):
        run(aws, lanes_without_functions, min_clients=3)
    assert round_status(aws, aws.bucket(lanes_without_functions.bucket), "r-1")["state"] == "open"


def test_clients_who_are_not_expected_are_left_out_by_name_whatever_they_sent(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    expected = submit_good(aws, lanes_without_functions)
    put(aws, lanes_without_functions, "mallory", weights(7))
    put_bytes(aws, lanes_without_functions, "oscar", b"rubbish!")
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions, on_invalid="fail", expect_clients=("a", "c"), min_fraction=1.0)
    assert reasons(report) == dict.fromkeys(
        ("mallory", "oscar"), "is not among the clients whom the round expects"
    )  # fmt: skip
    assert read_global(aws, lanes_without_functions) == expected


# --- what only workers see -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shards", "shape"), [(1, SMALL), (4, SMALL), (2, LARGE)])
def test_clients_with_values_that_are_no_numbers_are_excluded_from_every_shard(
    aws: AwsClients, lanes_without_functions: Deployment, shards: int, shape: tuple[int, int]
) -> None:
    expected = submit_good(aws, lanes_without_functions, shape)
    last = shape[0] * shape[1] - 1
    put(aws, lanes_without_functions, "b", spoilt("layer.weight", np.nan, shape), 3)
    put(aws, lanes_without_functions, "d", spoilt("layer.weight", -np.inf, shape, at=last), 3)
    with working(aws, lanes_without_functions, shards):
        report = run(aws, lanes_without_functions, shards)
    assert read_global(aws, lanes_without_functions) == expected
    assert reasons(report) == {
        "b": "tensor 'layer.weight': client b has NaN", "d": "tensor 'layer.weight': client d has -Inf"
    }  # fmt: skip
    assert 1 <= report["revision"] <= 2
    assert [p["client"] for p in report["participants"]] == ["a", "c"]
    assert report["total_examples"] == 7
    assert manifest_of(aws, lanes_without_functions).revision == report["revision"]
    assert stays_clean(aws, lanes_without_functions)


@pytest.mark.parametrize("spoil", ["replaced", "deleted"])
def test_an_update_that_changes_after_pinning_is_excluded(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    expected = submit_good(aws, lanes_without_functions)
    put(aws, lanes_without_functions, "b", weights(2))
    real = sharded.queue_jobs

    def change_first(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(sharded, "queue_jobs", real)
        if spoil == "replaced":
            put_bytes(aws, lanes_without_functions, "b", update_bytes(weights(77)))
        else:
            aws.s3.delete_object(Bucket=lanes_without_functions.bucket, Key=update_key("r-1", "b"))
        real(*args, **kwargs)

    monkeypatch.setattr(sharded, "queue_jobs", change_first)
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions)
    assert read_global(aws, lanes_without_functions) == expected
    assert f"was {spoil} after the round pinned it" in reasons(report)["b"]


def test_a_norm_above_the_largest_is_excluded_and_all_norms_are_reported(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    expected = submit_good(aws, lanes_without_functions)
    put(aws, lanes_without_functions, "b", spoilt("layer.weight", 1e6))
    with working(aws, lanes_without_functions, 4):
        report = run(aws, lanes_without_functions, 4, max_norm=1000.0)
    assert read_global(aws, lanes_without_functions) == expected
    assert reasons(report) == {"b": "the L2 norm of its update is 1e+06, above the largest of 1000"}
    for client, (values, _) in good().items():
        floating = [v.astype(np.float64).reshape(-1) for v in values.values() if v.dtype.kind == "f"]
        assert report["norms"][client] == pytest.approx(np.linalg.norm(np.concatenate(floating)), rel=1e-12)
    assert sorted(report["norms"]) == ["a", "c"]


def test_norms_are_reported_where_nothing_depends_on_them(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    submit_good(aws, lanes_without_functions)
    with working(aws, lanes_without_functions, 2):
        report = run(aws, lanes_without_functions, on_invalid="fail")
    assert all(norm > 0 for norm in report["norms"].values())
    assert objects(aws, lanes_without_functions, "rounds/r-1/norms/") == []


# --- the end of a round --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"max_norm": 1000.0}, {}])
def test_without_exclusion_a_bad_update_ends_the_round_and_the_report_names_it(
    aws: AwsClients, lanes_without_functions: Deployment, fields: dict[str, Any]
) -> None:
    submit_good(aws, lanes_without_functions)
    put(aws, lanes_without_functions, "b", spoilt("layer.weight", 1e6 if fields else np.nan))
    with working(aws, lanes_without_functions, 2), pytest.raises(RoundFailed, match="client b") as caught:
        run(aws, lanes_without_functions, on_invalid="fail", **fields)
    assert "Nothing was published" in str(caught.value)
    document = json.loads(read(aws, lanes_without_functions, report_key("r-1")))
    assert (document["status"], document["client"]) == ("failed", "b")
    assert (document["error_kind"], document["exit_status"]) == ("RoundFailed", 5)
    assert [e["client"] for e in document["bad"]] == ["b"]
    assert objects(aws, lanes_without_functions, "models/") == []
    assert uploads(aws, lanes_without_functions) == 0


def test_too_few_clients_after_exclusion_end_the_round_with_the_status_of_a_missed_quorum(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    submit_good(aws, lanes_without_functions, LARGE)
    put(aws, lanes_without_functions, "b", spoilt("scale", np.nan, LARGE))
    with working(aws, lanes_without_functions, 2), pytest.raises(QuorumMissed) as caught:
        run(aws, lanes_without_functions, min_clients=3)
    assert "2 of the 3 updates of its quorum are left after excluding client b (tensor 'scale'" in str(caught.value)
    assert stays_clean(aws, lanes_without_functions)
    with pytest.raises(QuorumMissed, match="The round has ended; start one with another id"):
        resume_round(aws, lanes_without_functions, "r-1")


# --- interruptions -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The orchestrator's process ends here."""


KILLED_AT = {
    "a bad update is known, nothing is planned": lambda m: killed(m, coordinator, "exclude"),
    "the new upload is there, the manifest is not": lambda m: killed(m, coordinator.exclude.__globals__, "swap_object"),
    "the new manifest is there, the old upload is too": lambda m: killed(
        m, coordinator.exclude.__globals__, "abort_upload"
    ),
    "all is planned, nothing is queued": lambda m: killed(m, coordinator, "exclude", after=True),
}


def killed(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, *, after: bool = False) -> None:
    real = where[name] if isinstance(where, dict) else getattr(where, name)
    replace = monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr

    def kill(*args: Any, **kwargs: Any) -> Any:
        replace(where, name, real)
        if after:
            real(*args, **kwargs)
        raise Killed

    replace(where, name, kill)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("step", list(KILLED_AT))
def test_a_round_that_dies_while_it_excludes_is_finished_by_resume_and_leaves_nothing_behind(
    aws: AwsClients,
    lanes_without_functions: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    shape: tuple[int, int],
) -> None:
    expected = submit_good(aws, lanes_without_functions, shape)
    put(aws, lanes_without_functions, "b", spoilt("scale", np.nan, shape))
    KILLED_AT[step](monkeypatch)
    with working(aws, lanes_without_functions, 2):
        with pytest.raises(Killed):
            run(aws, lanes_without_functions)
        report = resume_round(aws, lanes_without_functions, "r-1").document
    assert read_global(aws, lanes_without_functions) == expected
    assert [e["client"] for e in report["excluded"]] == ["b"]
    assert stays_clean(aws, lanes_without_functions)
    assert queued(aws, lanes_without_functions) == 0


def test_of_two_that_replan_one_manifest_stays(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    from lambdas.protocol.manifest import Exclusion
    from orchestrator.rounds.exclusion import exclude
    from orchestrator.rounds.manifest import freeze_round
    from orchestrator.rounds.pin import list_updates, pin_updates
    from orchestrator.rounds.request import RoundRecord

    submit_good(aws, lanes_without_functions, LARGE)
    put(aws, lanes_without_functions, "b", weights(2, LARGE))
    s3, bucket = aws.s3, lanes_without_functions.bucket
    request = RoundRequest("digits", "r-1")
    pinned = pin_updates(Bucket(s3, bucket), request, list_updates(Bucket(s3, bucket), "r-1"))
    manifest = freeze_round(Bucket(s3, bucket), RoundRecord(request, 1.0), pinned, 2)
    first = exclude(Bucket(s3, bucket), request, manifest, [Exclusion("b", "k", "r")])
    second = exclude(Bucket(s3, bucket), request, manifest, [Exclusion("c", "k", "r")])
    assert first == second
    assert read(aws, lanes_without_functions, manifest_key("r-1")) == first.to_bytes()
    (left,) = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert left["UploadId"] == first.output.upload_id
