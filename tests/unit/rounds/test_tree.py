"""lambda-FL and LIFL: their geometry, and rounds that are averaged by them, over real queues."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.keys import partial_key, partials_prefix, report_key
from lambdas.protocol.limits import MAX_CLIENTS
from lambdas.protocol.messages import AggregatorJob, AggregatorResult, Partial, parse_job
from lambdas.protocol.topologies import TREES
from lambdas.protocol.tree import Tree
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import BadInput, NotDeployed, RoundFailed
from orchestrator.paths import ROOT
from orchestrator.rounds import queues, wait
from orchestrator.rounds import tree as tree_averaging
from orchestrator.rounds.queues import send_jobs
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round
from orchestrator.rounds.tree import next_step
from orchestrator.workers import poll
from tests.support.rounds import expected_file, manifest_of, objects, put, read, read_global, weights
from tests.support.trees import COUNTS, UPDATES, run, submit_all

# --- geometry ------------------------------------------------------------------------------------------------------


@given(st.sampled_from(TREES), st.integers(1, 3000))
def test_every_level_takes_every_input_exactly_once_and_nobody_takes_more_than_the_fan_in(tree: str, n: int) -> None:
    found = Tree(tree, n)
    most = next(k for k in range(1, n + 1) if k ** (2 if tree == "lambda-fl" else 3) >= n)
    below = n
    for level, width in enumerate(found.widths):
        inputs = [found.inputs(level, index) for index in range(width)]
        assert [i for group in inputs for i in group] == list(range(below))
        assert all(1 <= len(group) <= most for group in inputs)
        leaves = [found.participants(level, index) for index in range(width)]
        assert [i for group in leaves for i in group] == list(range(n))
        below = width
    assert below == 1
    assert len(found.widths) == (2 if tree == "lambda-fl" else 3)


def test_the_trees_invoke_and_read_as_the_papers_do() -> None:
    with (ROOT / "benchmarks" / "data" / "paper_lambda_rounds.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["topology"] in TREES]
    assert rows
    for row in rows:
        tree = Tree(row["topology"], int(row["clients"]))
        assert sum(tree.widths) == int(row["invocations"]) == int(row["s3_puts"])
        reads = sum(len(tree.inputs(level, i)) for level, width in enumerate(tree.widths) for i in range(width))
        assert reads == int(row["s3_gets"])


def test_the_largest_round_has_a_tree() -> None:
    assert Tree("lambda-fl", MAX_CLIENTS).widths == (316, 1)
    assert Tree("lifl", MAX_CLIENTS).widths == (2128, 46, 1)


@given(st.sampled_from(TREES), st.integers(1, 200), st.data())
def test_the_next_step_is_always_one_whose_inputs_are_there(tree: str, n: int, data: Any) -> None:
    found = Tree(tree, n)
    everything = [(level, i) for level, width in enumerate(found.widths) for i in range(width)]
    there = {node: Partial(etag="e") for node in everything[:-1] if data.draw(st.booleans())}
    for _ in everything:
        level, wanted = next_step(found, there)
        assert wanted
        for index in wanted:
            assert (level, index) not in there
            assert level == 0 or all((level - 1, i) in there for i in found.inputs(level, index))
            there[level, index] = Partial(etag="e")
        if (found.root, 0) in there:
            break
    assert (found.root, 0) in there


# --- the job -------------------------------------------------------------------------------------------------------

DIGEST = "0123456789abcdef" * 4


def test_a_tree_jobs_json_is_pinned_literally() -> None:
    job = AggregatorJob("r-1", DIGEST, 1, 2, (Partial(etag='"e"'), Partial(segment="m/s")), 3, True)
    text = (
        '{"aggregator":2,"attempt":3,"in_s3":true,"inputs":[{"etag":"\\"e\\"","segment":null},{"etag":null,'
        '"segment":"m/s"}],"level":1,"manifest_sha256":"' + DIGEST + '","round_id":"r-1","schema":1}'
    )
    assert job.to_json() == text
    assert AggregatorJob.from_bytes(text) == parse_job(text) == job


@pytest.mark.parametrize(
    "inputs", ["[{}]", '[{"etag":"e","segment":"s"}]', '["e"]', '{"etag":"e"}'], ids=["none", "both", "text", "object"]
)
def test_an_input_that_is_nowhere_or_in_two_places_is_refused(inputs: str) -> None:
    text = AggregatorJob("r-1", DIGEST, 1, 0).to_json().replace('"inputs":[]', f'"inputs":{inputs}')
    with pytest.raises(InvalidContract):
        AggregatorJob.from_bytes(text)


def test_the_jobs_of_the_largest_tree_fit_into_a_message() -> None:
    inputs = tuple(Partial(etag=f'"{"0" * 32}"') for _ in range(316))
    assert len(AggregatorJob("r" * 128, DIGEST, 1, 0, inputs).to_json()) < 64 * 1024


# --- rounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_publishes_the_bytes_of_the_sharded_round_and_cleans_up(
    aws: AwsClients, lanes_without_functions: Deployment, tree: str
) -> None:
    submit_all(aws, lanes_without_functions)
    report = run(aws, lanes_without_functions, tree)
    assert read_global(aws, lanes_without_functions) == expected_file(UPDATES)
    shape = Tree(tree, len(COUNTS))
    assert (report["topology"], report["status"]) == (tree, "published")
    assert [row["aggregators"] for row in report["levels"]] == [row["reported"] for row in report["levels"]]
    assert [row["aggregators"] for row in report["levels"]] == list(shape.widths)
    # Every aggregator reads manifest, coordinator's record and each of its inputs, and stores one thing.
    assert [row["gets"] for row in report["levels"]] == [
        2 * width + sum(len(shape.inputs(level, i)) for i in range(width)) for level, width in enumerate(shape.widths)
    ]
    assert report["totals"]["puts"] == sum(shape.widths)
    assert objects(aws, lanes_without_functions, partials_prefix("r-1")) == []


def test_partial_sums_are_files_that_any_tool_reads(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    submit_all(aws, lanes_without_functions)
    stop_after_leaves(aws, lanes_without_functions, "lambda-fl")
    manifest = manifest_of(aws, lanes_without_functions)
    key = partial_key("r-1", manifest.sha256, 0, 1)
    body = read(aws, lanes_without_functions, key)
    found = load(body)
    group = list(UPDATES.values())[3:6]
    assert {t.dtype for t in found.values()} == {np.dtype("f8")}
    for name, sums in found.items():
        expected = np.zeros(sums.shape)
        for values, count in group:
            expected += float(count) * values[name].astype(np.float64)
        assert np.array_equal(sums, expected)
    assert f'"weight":"{sum(count for _, count in group)}"'.encode() in body


def stop_after_leaves(aws: AwsClients, deployment: Deployment, tree: str) -> None:
    """Begin a round, do its leaves, and lose its orchestrator."""
    request = RoundRequest("digits", "r-1", min_clients=len(COUNTS), topology=tree, timeout_s=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wait, "_LOOK_EVERY_S", 0.0)
        patch.setattr(queues, "_WAIT_S", 1)
        with pytest.raises(RoundFailed, match="made no progress"):
            start_round(aws, deployment, request)
    poll.work(aws, deployment, [deployment.baselines[tree]], idle_exit_s=0.1)


@pytest.mark.parametrize("tree", TREES)
def test_a_round_continues_with_the_partial_sums_that_are_stored(
    aws: AwsClients, lanes_without_functions: Deployment, tree: str
) -> None:
    submit_all(aws, lanes_without_functions)
    stop_after_leaves(aws, lanes_without_functions, tree)
    stored = objects(aws, lanes_without_functions, partials_prefix("r-1"))
    assert len(stored) == Tree(tree, len(COUNTS)).widths[0]
    report = run(aws, lanes_without_functions, tree)
    assert report["levels"][0]["seconds"] == 0, "the leaves were recomputed"
    assert report["levels"][-1]["reported"] == 1
    assert read_global(aws, lanes_without_functions) == expected_file(UPDATES)


def test_a_partial_sum_that_disappears_is_recomputed(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    submit_all(aws, lanes_without_functions)
    stop_after_leaves(aws, lanes_without_functions, "lambda-fl")
    manifest = manifest_of(aws, lanes_without_functions)
    digest = manifest.sha256
    lane = lanes_without_functions.baselines["lambda-fl"]
    gone = tuple(Partial(etag=f'"{"0" * 32}"') for _ in range(3))
    send_jobs(aws, lane.queue_url, [AggregatorJob("r-1", digest, 1, 0, gone, 1)])
    report = run(aws, lanes_without_functions, "lambda-fl")
    assert report["status"] == "published"
    assert read_global(aws, lanes_without_functions) == expected_file(UPDATES)


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "while-the-next-level-runs"])
def test_a_reported_try_of_an_aggregator_is_in_the_report_whenever_its_message_arrives(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    submit_all(aws, lanes_without_functions)
    levels: list[int] = []

    def queue_and_fail(clients: AwsClients, url: str, jobs: Sequence[AggregatorJob]) -> None:
        levels.append(jobs[0].level)
        if levels == ([0, 1] if late else [0]):
            failed = AggregatorResult(
                round_id="r-1", manifest_sha256=jobs[0].manifest_sha256, level=0, aggregator=2, status="retrying",
                error="S3 answered 503",
            )  # fmt: skip
            clients.sqs.send_message(QueueUrl=lanes_without_functions.result_queue_url, MessageBody=failed.to_json())
        send_jobs(clients, url, jobs)

    monkeypatch.setattr(tree_averaging, "send_jobs", queue_and_fail)
    report = run(aws, lanes_without_functions, "lifl")
    told = [(row["level"], row["aggregator"], row["error"]) for row in report["redelivered"]]
    assert told == [(0, 2, "S3 answered 503")]
    assert report["silent_tries"] == []


@pytest.mark.parametrize("tree", TREES)
def test_nan_fails_the_round_names_client_and_tensor_and_leaves_nothing(
    aws: AwsClients, lanes_without_functions: Deployment, tree: str
) -> None:
    submit_all(aws, lanes_without_functions)
    values = weights(9)
    values["layer.half"][2] = np.inf
    put(aws, lanes_without_functions, "c-zz", values)
    with pytest.raises(RoundFailed, match=r"aggregator .* on level 0 of .*'layer.half': client c-zz has Inf"):
        run(aws, lanes_without_functions, tree)
    assert objects(aws, lanes_without_functions, partials_prefix("r-1")) == []
    assert report_key("r-1") in objects(aws, lanes_without_functions)


def test_a_tree_without_a_lane_says_why(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    bare = Deployment(
        "dev", "us-east-1", lanes_without_functions.bucket, None, "q", {},
        baselines_refused={"lifl": "its functions need 9,000 MB."},
    )  # fmt: skip
    with pytest.raises(NotDeployed, match=r"No lane for lifl: its functions need 9,000 MB\."):
        start_round(aws, bare, RoundRequest("digits", "r-1", topology="lifl"))
    with pytest.raises(NotDeployed, match="set baselines = true in environments/dev"):
        start_round(aws, bare, RoundRequest("digits", "r-1", topology="lambda-fl"))


def test_a_tree_with_shards_or_an_unknown_one_is_refused() -> None:
    with pytest.raises(BadInput, match="lifl averages whole models, not 4 shards"):
        RoundRequest("digits", "r-1", 4, topology="lifl")
    with pytest.raises(BadInput, match="Unknown topology 'star'"):
        RoundRequest("digits", "r-1", topology="star")


def test_a_model_that_an_aggregator_cannot_hold_is_refused_before_anything_is_queued(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", {"w": np.zeros((60 * 1024**2,), dtype=np.int8)})
    request = RoundRequest("digits", "r-1", topology="lifl")
    with pytest.raises(BadInput, match=r"holds the complete model as float64 sums, 503,316,480 bytes.*has 512 MB"):
        start_round(aws, lanes_without_functions, request)
