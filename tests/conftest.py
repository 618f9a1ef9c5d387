"""Fixtures: an emulator for this test run, which EMULATOR selects, and deployments on it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lambdas.protocol.topologies import TREES
from lambdas.storage import shards
from orchestrator.aws.clients import AwsClients, connect
from orchestrator.aws.deployment import Deployment, Lane
from orchestrator.emulators import emulator
from orchestrator.emulators.daemon import free_port
from orchestrator.workers import poll

# No test has a deadline: a slow machine is not a defect.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def aws_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home directory for this test run, so that the emulator and the deployment of a developer are left alone."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDAGG_HOME", str(home))
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield home


@pytest.fixture(scope="session")
def endpoint_url(aws_home: Path) -> Iterator[str]:
    """The URL of an emulator that runs as long as the test run."""
    # Not the default port: another emulator may use it.
    yield emulator.start(free_port()).url
    emulator.stop()


@pytest.fixture(scope="session")
def aws(endpoint_url: str) -> AwsClients:
    """S3 and SQS of the emulator."""
    return connect("us-east-1", endpoint_url)


@pytest.fixture
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow parts of any size, so that small shards become parts of an upload."""
    monkeypatch.setattr(shards, "MIN_PART_BYTES", 0)


@pytest.fixture
def lanes_without_functions(aws: AwsClients, endpoint_url: str) -> Deployment:
    """A bucket and queues for one test, without Lambda functions: jobs stay queued until the test runs a worker."""
    name = f"test-{next(_numbers)}"
    aws.s3.create_bucket(Bucket=name)

    def queue(suffix: str) -> str:
        return aws.sqs.create_queue(QueueName=f"{name}-{suffix}")["QueueUrl"]

    lanes = {
        m: Lane(m, queue(f"lane-{m}"), queue(f"dead-{m}"), f"{name}-{m}", 256, 60, "x86_64", 3) for m in (1, 2, 4, 8)
    }
    trees = {
        tree: Lane(1, queue(tree), queue(f"dead-{tree}"), f"{name}-{tree}", 512, 60, "x86_64", 3, tree)
        for tree in TREES
    }
    return Deployment("local", "us-east-1", name, endpoint_url, queue("results"), lanes, trees)


@pytest.fixture
def worked_lanes(aws: AwsClients, lanes_without_functions: Deployment) -> Deployment:
    """The same, with a worker thread on every lane."""
    for lane in lanes_without_functions.all_lanes:
        threading.Thread(
            target=poll.work, args=(aws, lanes_without_functions, [lane]), kwargs={"idle_exit_s": 20}, daemon=True
        ).start()
    return lanes_without_functions
