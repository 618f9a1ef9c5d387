"""Rounds on an emulator: valid and invalid updates, workers, and the contents of a bucket and its queues."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lambdas.protocol.keys import global_key, update_key
from lambdas.protocol.manifest import RoundManifest
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.client.sources import from_state_dict
from orchestrator.client.submit import Submitted, submit
from orchestrator.client.update_file import write_update
from orchestrator.rounds.manifest import read_manifest
from orchestrator.rounds.pin import list_updates
from orchestrator.workers import poll

StateDict = dict[str, np.ndarray[Any, Any]]

# 10.5 MB: each of two shards is larger than the smallest part that S3 accepts.
LARGE = (1500, 1750)


def weights(seed: int, shape: Sequence[int] = (3, 5)) -> StateDict:
    """A model in numpy: float32 weights, a float16 vector, a counter, a scalar and a tensor without values."""
    generator = np.random.default_rng(seed)
    return {
        "layer.weight": generator.standard_normal(tuple(shape), dtype=np.float32),
        "layer.half": generator.standard_normal(7).astype(np.float16),
        "bn.num_batches_tracked": np.array(10 + seed, dtype=np.int64),
        "scale": np.array(seed / 7, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }


def put(
    aws: AwsClients, deployment: Deployment, client: str, values: StateDict, examples: int = 1, round_id: str = "r-1"
) -> Submitted:
    """Submit an update as a client does."""
    return submit(aws.bucket(deployment.bucket), round_id, client, from_state_dict(values), examples)


def put_bytes(aws: AwsClients, deployment: Deployment, client: str, body: bytes, round_id: str = "r-1") -> None:
    """Store any bytes under the key of an update."""
    aws.s3.put_object(Bucket=deployment.bucket, Key=update_key(round_id, client), Body=body)


def update_bytes(values: StateDict, examples: int = 1) -> bytes:
    """The bytes of an update."""
    out = io.BytesIO()
    write_update(from_state_dict(values), examples, out)
    return out.getvalue()


def file_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header, valid or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def expected_file(updates: Mapping[str, tuple[StateDict, int]]) -> bytes:
    """The global model of a round: averaged with numpy in one process, and written by the safetensors library."""
    import safetensors.numpy

    total = sum(count for _, count in updates.values())
    averaged = {}
    for name, first in next(iter(updates.values()))[0].items():
        sums = np.zeros(first.shape, dtype=np.float64)
        for client in sorted(updates):
            values, count = updates[client]
            sums = sums + float(count) * values[name].astype(np.float64)
        mean = sums / total
        averaged[name] = np.asarray(mean if first.dtype.kind == "f" else np.rint(mean)).astype(first.dtype)
    result: bytes = safetensors.numpy.save(averaged, metadata={"format": "pt"})
    return result


@contextlib.contextmanager
def working(aws: AwsClients, deployment: Deployment, *lanes: int) -> Any:
    """Run a worker on each of these lanes during the block. They end some seconds after it."""

    def serve(shards: int) -> None:
        # The emulator may have stopped when the last worker asks for jobs.
        with contextlib.suppress(Exception):
            poll.work(aws, deployment, [deployment.lanes[shards]], idle_exit_s=3)

    for shards in lanes:
        threading.Thread(target=serve, args=(shards,), daemon=True).start()
    yield


def work_off(aws: AwsClients, deployment: Deployment, shards: int, *, jobs: int | None = None) -> int:
    """Run the jobs that are queued on a lane, at most `jobs` of them, and return their number."""
    lane = deployment.lanes[shards]
    done = 0
    worker = poll.ShardWorker(aws.bucket(deployment.bucket), aws.sqs, deployment.result_queue_url)
    while jobs is None or done < jobs:
        messages = aws.sqs.receive_message(QueueUrl=lane.queue_url, MaxNumberOfMessages=1).get("Messages", [])
        if not messages:
            break
        assert worker.run(messages[0]["Body"], receive_count=1, worker="test")
        aws.sqs.delete_message(QueueUrl=lane.queue_url, ReceiptHandle=messages[0]["ReceiptHandle"])
        done += 1
    return done


def queued(aws: AwsClients, deployment: Deployment) -> int:
    """The number of messages in the queues of all lanes, visible or not."""
    names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = [
        aws.sqs.get_queue_attributes(QueueUrl=lane.queue_url, AttributeNames=names)["Attributes"]
        for lane in deployment.lanes.values()
    ]
    return sum(int(a[name]) for a, name in itertools.product(attributes, names))


def objects(aws: AwsClients, deployment: Deployment, prefix: str = "") -> list[str]:
    """The keys in the bucket."""
    return [o["Key"] for o in aws.s3.list_objects_v2(Bucket=deployment.bucket, Prefix=prefix).get("Contents", [])]


def uploads(aws: AwsClients, deployment: Deployment) -> int:
    """The number of multipart uploads that are neither completed nor aborted."""
    return len(aws.s3.list_multipart_uploads(Bucket=deployment.bucket).get("Uploads", []))


def read(aws: AwsClients, deployment: Deployment, key: str) -> bytes:
    """The bytes of an object."""
    return aws.s3.get_object(Bucket=deployment.bucket, Key=key)["Body"].read()


def read_global(aws: AwsClients, deployment: Deployment, round_id: str = "r-1", model: str = "digits") -> bytes:
    """The bytes of the global model of a round."""
    return read(aws, deployment, global_key(model, round_id))


def manifest_of(aws: AwsClients, deployment: Deployment, round_id: str = "r-1") -> RoundManifest:
    """The manifest of a round. Fails if the round is not pinned."""
    manifest = read_manifest(aws.bucket(deployment.bucket), round_id)
    assert manifest is not None
    return manifest


def submitted_clients(aws: AwsClients, deployment: Deployment, round_id: str = "r-1") -> list[str]:
    """The clients that have submitted an update, in ascending order."""
    return [update.client for update in list_updates(aws.bucket(deployment.bucket), round_id)]
