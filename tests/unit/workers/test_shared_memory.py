"""LIFL on one machine: partial sums in shared memory, the same bytes, nothing left behind."""

from __future__ import annotations

import contextlib
import queue
import threading
from pathlib import Path

import pytest

from lambdas.protocol.errors import StorageUnavailable
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round
from orchestrator.workers.poll import work
from orchestrator.workers.shared_memory import Blocks, remove, work_together
from tests.support.rounds import expected_file, read_global
from tests.support.trees import COUNTS, UPDATES, submit_all


def left_over() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("fedagg-*")} if Path("/dev/shm").is_dir() else set()


def test_lifl_in_shared_memory_has_the_same_bytes_stores_only_the_model_and_leaves_nothing(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    before = left_over()
    deployment = lanes_without_functions
    submit_all(aws, deployment)
    lanes = [deployment.baselines["lifl"]]
    pool = threading.Thread(
        target=work_together,
        args=(aws, deployment, lanes),
        kwargs={"processes": 2, "idle_exit_s": 6},
        daemon=True,
    )
    pool.start()
    request = RoundRequest("digits", "r-1", min_clients=len(COUNTS), topology="lifl")
    report = start_round(aws, deployment, request).document
    assert read_global(aws, deployment) == expected_file(UPDATES)
    assert [row["in_shared_memory"] for row in report["levels"]] == [4, 2, 0]
    # Nothing but manifest and coordinator's record is read above the leaves, and nothing but the model is stored.
    assert [row["gets"] for row in report["levels"]] == [7 + 2 * 4, 2 * 2, 2]
    assert [row["puts"] for row in report["levels"]] == [0, 0, 1]
    pool.join(40)
    assert not pool.is_alive()
    assert left_over() <= before


def test_sums_in_another_pools_memory_are_made_again_in_s3(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    deployment = lanes_without_functions
    submit_all(aws, deployment)
    names: queue.Queue[tuple[str, str]] = queue.Queue()
    lane = deployment.baselines["lifl"]

    def serve(pool: str) -> None:
        # As on two machines: neither sees the other's blocks.
        blocks = Blocks(pool, names)
        with contextlib.suppress(Exception):
            work(aws, deployment, [lane], idle_exit_s=4, shared=blocks, on_job=lambda done: blocks.unmap())

    for pool in ("fedagg-test-one", "fedagg-test-two"):
        threading.Thread(target=serve, args=(pool,), daemon=True).start()
    try:
        request = RoundRequest("digits", "r-1", min_clients=len(COUNTS), topology="lifl")
        report = start_round(aws, deployment, request).document
        assert read_global(aws, deployment) == expected_file(UPDATES)
        assert report["status"] == "published"
    finally:
        while not names.empty():
            remove(names.get()[1])


def test_a_block_is_made_once_found_by_its_pool_only_and_removed() -> None:
    names: queue.Queue[tuple[str, str]] = queue.Queue()
    one, other = Blocks("fedagg-test-a", names), Blocks("fedagg-test-b", names)
    block = one.create("x", 64, "r-1")
    assert block is not None
    assert bytes(block[:64]) == bytes(64)
    assert names.get_nowait() == ("r-1", "fedagg-test-a-x")
    with pytest.raises(StorageUnavailable, match="is working on"):
        one.create("x", 64, "r-1")
    assert other.find("x") is None
    del block
    one.unmap()
    assert one.find("x") is not None
    one.unmap()
    one.drop("x")
    assert one.find("x") is None
