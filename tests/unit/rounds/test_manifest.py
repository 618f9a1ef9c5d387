"""From pinned updates to queued jobs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.keys import manifest_key
from lambdas.protocol.limits import MAX_PART_BYTES, MIN_PART_BYTES
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import ShardJob
from lambdas.protocol.safetensors import global_header
from lambdas.protocol.tensor_table import TensorSpec, TensorTable, shard_bounds
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.rounds import queues
from orchestrator.rounds.manifest import freeze_round, read_manifest, sink_for
from orchestrator.rounds.pin import list_updates, pin_updates
from orchestrator.rounds.queues import queue_jobs
from orchestrator.rounds.request import RoundRecord, RoundRequest
from tests.support.rounds import LARGE, objects, put, queued, read, uploads, weights
from tests.support.sqs import MemorySqs

RECORD = RoundRecord(RoundRequest("digits", "r-1"), 1.0)


def a_table(nbytes: int) -> TensorTable:
    return TensorTable((TensorSpec("w", "U8", (nbytes,)),))


def frozen(aws: AwsClients, deployment: Deployment, shards: int, shape: tuple[int, int] = (3, 5)) -> RoundManifest:
    put(aws, deployment, "a", weights(1, shape))
    updates = list_updates(aws.bucket(deployment.bucket), "r-1")
    pinned = pin_updates(aws.bucket(deployment.bucket), RECORD.request, updates)
    return freeze_round(aws.bucket(deployment.bucket), RECORD, pinned, shards)


# --- the sink ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "shards", "sink"),
    [
        (1, 1, "multipart"),  # the last part may be small
        (4 * MIN_PART_BYTES, 4, "multipart"),
        (4 * MIN_PART_BYTES - 4, 4, "objects"),
        (3, 4, "objects"),
        (4 * MAX_PART_BYTES - 10_000, 4, "multipart"),
    ],
)
def test_parts_are_used_where_s3_takes_them(nbytes: int, shards: int, sink: str) -> None:
    table = a_table(nbytes)
    assert sink_for(table, shard_bounds(table, shards)) == sink


def test_the_header_counts_for_the_first_part() -> None:
    # Just below the smallest part, but the header comes in front.
    table = a_table(2 * MIN_PART_BYTES - 10)
    assert sink_for(table, shard_bounds(table, 2)) == "multipart"
    full = a_table(MAX_PART_BYTES)
    with pytest.raises(BadInput, match="larger than S3's largest part"):
        sink_for(full, shard_bounds(full, 1))
    fits = a_table(MAX_PART_BYTES - len(global_header(full)))
    assert sink_for(fits, shard_bounds(fits, 1)) == "multipart"


@pytest.mark.parametrize("nbytes", [MAX_PART_BYTES, 3 * MAX_PART_BYTES + 1, 10 * MAX_PART_BYTES])
def test_shards_larger_than_a_part_are_refused_with_a_count_that_works(nbytes: int) -> None:
    table = a_table(nbytes)
    with pytest.raises(BadInput, match="Use --shards") as caught:
        sink_for(table, shard_bounds(table, 1))
    shards = int(str(caught.value).split("--shards ")[1].split()[0])
    assert sink_for(table, shard_bounds(table, shards)) == "multipart"


# --- the manifest --------------------------------------------------------------------------------------------------


def test_freezing_writes_the_manifest_that_everybody_reads(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions, 4)
    assert read_manifest(aws.bucket(lanes_without_functions.bucket), "r-1") == manifest
    assert read(aws, lanes_without_functions, manifest_key("r-1")) == manifest.to_bytes()
    assert manifest.output.kind == "objects"
    assert manifest.shards == 4


def test_a_large_model_gets_a_multipart_upload(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    manifest = frozen(aws, lanes_without_functions, 2, LARGE)
    assert manifest.output.kind == "multipart"
    assert uploads(aws, lanes_without_functions) == 1


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_of_two_orchestrators_the_first_ones_manifest_is_the_rounds(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    first = frozen(aws, lanes_without_functions, 2, shape)
    second = frozen(aws, lanes_without_functions, 1, shape)
    assert second == first
    # The second one's multipart upload is gone.
    assert uploads(aws, lanes_without_functions) == (1 if first.output.upload_id else 0)


def test_before_pinning_there_is_no_manifest(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    assert read_manifest(aws.bucket(lanes_without_functions.bucket), "r-1") is None


# --- the jobs ------------------------------------------------------------------------------------------------------


def test_one_job_per_shard_is_queued_and_points_to_the_manifest(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions, 8)
    lane = lanes_without_functions.lane(8)
    shards = [*range(23), 40]
    queue_jobs(aws, lane.queue_url, manifest, shards, attempt=3)
    assert queued(aws, lanes_without_functions) == 24
    jobs = []
    while messages := aws.sqs.receive_message(QueueUrl=lane.queue_url, MaxNumberOfMessages=10).get("Messages"):
        jobs += [ShardJob.from_bytes(message["Body"]) for message in messages]
    digest = sha256_hex(read(aws, lanes_without_functions, manifest_key("r-1")))
    assert sorted(jobs, key=lambda job: job.shard) == [ShardJob("r-1", digest, shard, 3) for shard in shards]


class FlakySqs(MemorySqs):
    """Refuses every other entry of the first `times` requests."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def send_message_batch(self, *, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803 - boto3's names
        refused = Entries[::2] if len(self.calls) < self.times else []
        taken = [entry for entry in Entries if entry not in refused]
        super().send_message_batch(QueueUrl=QueueUrl, Entries=taken)
        return {"Failed": [{"Id": entry["Id"], "Message": "busy"} for entry in refused]}


def test_jobs_that_sqs_refuses_are_sent_again_and_none_twice() -> None:
    manifest: Any = type("Manifest", (), {"round_id": "r-1", "sha256": "ab" * 32})()
    sqs = FlakySqs(times=3)
    queue_jobs(AwsClients(None, sqs), "q", manifest, range(10), attempt=0)  # type: ignore[arg-type]
    assert sorted(json.loads(body)["shard"] for body in sqs.bodies("q")) == list(range(10))
    assert len(sqs.calls) == 4


def test_jobs_that_sqs_refuses_for_good_are_an_error_that_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest: Any = type("Manifest", (), {"round_id": "r-1", "sha256": "ab" * 32})()
    sqs = FlakySqs(times=1000)
    with pytest.raises(OrchestratorError, match=r"SQS refused 1 jobs 5 times \(busy\).*`orchestrator resume` queues"):
        queue_jobs(AwsClients(None, sqs), "q", manifest, range(10), attempt=0)  # type: ignore[arg-type]
    assert len(sqs.calls) == queues._SEND_ATTEMPTS


def test_a_model_without_values_but_one_is_cut_into_mostly_empty_shards(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", {"w": np.array(1.0, np.float32)})
    updates = list_updates(aws.bucket(lanes_without_functions.bucket), "r-1")
    pinned = pin_updates(aws.bucket(lanes_without_functions.bucket), RECORD.request, updates)
    manifest = freeze_round(aws.bucket(lanes_without_functions.bucket), RECORD, pinned, 8)
    assert sum(manifest.shard_nbytes(shard) for shard in range(8)) == 4
    assert objects(aws, lanes_without_functions, "models/") == []
