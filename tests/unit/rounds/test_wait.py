"""From queued jobs to the published model: results come and go, S3 is the truth."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.keys import latest_key, report_key, shard_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.messages import ShardJob, ShardResult
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import RoundFailed
from orchestrator.rounds import publish as publishing
from orchestrator.rounds import queues, wait
from orchestrator.rounds.context import Attempt
from orchestrator.rounds.publish import publish, shard_region
from orchestrator.rounds.request import RoundRecord, RoundRequest
from orchestrator.rounds.sharded import ShardStep
from orchestrator.rounds.stored import stored_shards
from orchestrator.rounds.wait import BadUpdate, Collection, wait_for_step
from tests.support.aws import client_error
from tests.support.contexts import context_of
from tests.support.pinned import SHARDS, averaged, expected, frozen, queue
from tests.support.rounds import LARGE, objects, read, read_global, uploads, work_off

DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_WAIT_S", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(wait, "_GRACE_S", 0.5)


def attempt_at(aws: AwsClients, deployment: Deployment, manifest: RoundManifest, timeout_s: float = 20.0) -> Attempt:
    record = RoundRecord(RoundRequest("digits", manifest.round_id, timeout_s=timeout_s), 1.0)
    return Attempt(context_of(aws, deployment, record), manifest, deployment.lane(SHARDS), resumed=False)


def await_all(aws: AwsClients, deployment: Deployment, manifest: RoundManifest, timeout_s: float = 20.0) -> Collection:
    return await_shards(attempt_at(aws, deployment, manifest, timeout_s))


def await_shards(attempt: Attempt, progress: Any = lambda count: None) -> Collection:
    collection = Collection()
    wait_for_step(attempt, ShardStep(attempt.bucket, attempt.manifest), collection, progress)
    return collection


def digests(collection: Collection) -> dict[int, str]:
    return {shard: result.sha256 for shard, result in collection.results.items() if result.sha256 is not None}


def send(aws: AwsClients, deployment: Deployment, result: ShardResult | str) -> None:
    body = result if isinstance(result, str) else result.to_json()
    aws.sqs.send_message(QueueUrl=deployment.result_queue_url, MessageBody=body)


def result_of(manifest: RoundManifest, shard: int, status: str = "done", **fields: Any) -> ShardResult:
    return ShardResult(
        round_id=manifest.round_id,
        manifest_sha256=manifest.sha256,
        shard=shard,
        status=status,
        **fields,
    )


def results_left(aws: AwsClients, deployment: Deployment) -> int:
    names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = aws.sqs.get_queue_attributes(QueueUrl=deployment.result_queue_url, AttributeNames=names)["Attributes"]
    return sum(int(value) for value in found.values())


# --- waiting -------------------------------------------------------------------------------------------------------


def test_results_of_finished_shards_end_the_waiting(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 60.0)
    manifest = frozen(aws, lanes_without_functions)
    queue(aws, lanes_without_functions, manifest)
    work_off(aws, lanes_without_functions, SHARDS)
    told: list[int] = []
    collection = await_shards(attempt_at(aws, lanes_without_functions, manifest), told.append)
    assert sorted(collection.results) == [0, 1]
    assert sum(told) == 2
    assert results_left(aws, lanes_without_functions) == 0


def test_shards_without_any_result_message_are_found_in_s3(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions)
    queue(aws, lanes_without_functions, manifest)
    work_off(aws, lanes_without_functions, SHARDS)
    aws.sqs.purge_queue(QueueUrl=lanes_without_functions.result_queue_url)
    collection = await_all(aws, lanes_without_functions, manifest)
    assert collection.results == {}


def test_results_of_other_running_rounds_are_left_for_them(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions)
    for shard in range(3):
        send(
            aws,
            lanes_without_functions,
            ShardResult(round_id="r-other", manifest_sha256=DIGEST, shard=shard, status="done"),
        )
    for shard in range(SHARDS):
        send(aws, lanes_without_functions, result_of(manifest, shard))
    assert sorted(await_all(aws, lanes_without_functions, manifest).results) == [0, 1]
    assert results_left(aws, lanes_without_functions) == 3


def test_stale_and_malformed_results_are_dropped(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    manifest = frozen(aws, lanes_without_functions)
    bucket = lanes_without_functions.bucket
    aws.s3.put_object(Bucket=bucket, Key=report_key("r-ended"), Body=b"{}")
    stale = [
        ShardResult(round_id="r-ended", manifest_sha256=DIGEST, shard=0, status="done"),  # of a round that has ended
        ShardResult(
            round_id="r-1", manifest_sha256=DIGEST, shard=0, status="failed", error="x"
        ),  # of an older manifest of this round
    ]
    malformed = ["", "x", "[]", '{"schema":3}', result_of(manifest, 0).to_json().replace('"done"', '"perhaps"')]
    outside = [result_of(manifest, SHARDS), result_of(manifest, 999)]  # no shards of this manifest
    for item in [*stale, *malformed[1:], *outside]:
        send(aws, lanes_without_functions, item)
    for shard in range(SHARDS):
        send(aws, lanes_without_functions, result_of(manifest, shard))
    assert sorted(await_all(aws, lanes_without_functions, manifest).results) == [0, 1]
    assert results_left(aws, lanes_without_functions) == 0


def test_a_failed_shard_ends_the_round_at_once_with_the_workers_words(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions)
    send(
        aws,
        lanes_without_functions,
        result_of(manifest, 1, "failed", error="tensor 'w': client b has NaN", client="b"),
    )
    with pytest.raises(BadUpdate, match=r"shard 1 of 2: tensor 'w': client b has NaN. Nothing was published") as caught:
        await_all(aws, lanes_without_functions, manifest)
    assert caught.value.result.client == "b"


def test_a_shard_that_is_tried_again_is_reported_and_waited_for(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions)
    send(aws, lanes_without_functions, result_of(manifest, 0, "retrying", error="S3 was slow", receive_count=1))
    for shard in range(SHARDS):
        send(aws, lanes_without_functions, result_of(manifest, shard))
    attempt = attempt_at(aws, lanes_without_functions, manifest)
    await_shards(attempt)
    assert [r.error for r in attempt.failed_tries] == ["S3 was slow"]


def test_a_shard_whose_every_try_failed_is_given_up_with_the_last_cause(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions)
    last = result_of(manifest, 1, "retrying", error="S3 answered 503", receive_count=3)
    threading.Timer(2.0, send, (aws, lanes_without_functions, last)).start()
    with pytest.raises(
        RoundFailed, match=r"shard 1 of 2 failed 3 times, last cause: S3 answered 503.*resume --round r-1 --redrive"
    ):
        await_all(aws, lanes_without_functions, manifest)


def test_a_last_try_that_an_earlier_run_gave_up_on_does_not_end_the_next_run(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions)
    send(aws, lanes_without_functions, result_of(manifest, 1, "retrying", error="old", receive_count=3))
    queue(aws, lanes_without_functions, manifest)
    threading.Timer(1.5, work_off, (aws, lanes_without_functions, SHARDS)).start()
    await_all(aws, lanes_without_functions, manifest)
    assert sorted(stored_shards(aws.bucket(lanes_without_functions.bucket), manifest) or {}) == [0, 1]


def test_a_job_in_the_dead_letter_queue_is_found_among_the_letters_of_other_rounds(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions)
    lane = lanes_without_functions.lane(SHARDS)
    for i in range(25):
        aws.sqs.send_message(QueueUrl=lane.dead_letter_queue_url, MessageBody=ShardJob(f"r-{i}", DIGEST, 0).to_json())
    aws.sqs.send_message(QueueUrl=lane.dead_letter_queue_url, MessageBody="no job")
    letter = ShardJob("r-1", manifest.sha256, 0).to_json()
    later = threading.Timer(
        1.0, aws.sqs.send_message, (), {"QueueUrl": lane.dead_letter_queue_url, "MessageBody": letter}
    )
    later.start()
    with pytest.raises(
        RoundFailed,
        match=r"shard 0 of 2 failed 3 times.*no result was sent .the function was killed.*/aws/lambda/test-",
    ):
        await_all(aws, lanes_without_functions, manifest)


def test_no_progress_for_the_timeout_is_an_error_that_says_where_to_look(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = frozen(aws, lanes_without_functions)
    with pytest.raises(
        RoundFailed, match=r"2 of 2 shards \(first: 0\) made no progress for 1 s. Look at the log of test"
    ):
        await_all(aws, lanes_without_functions, manifest, timeout_s=1)


# --- what is stored ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_only_shards_of_the_right_size_count_as_stored(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = frozen(aws, lanes_without_functions, shape)
    bucket = lanes_without_functions.bucket
    assert stored_shards(aws.bucket(bucket), manifest) == {}
    queue(aws, lanes_without_functions, manifest)
    assert work_off(aws, lanes_without_functions, SHARDS) == 2
    assert sorted(stored_shards(aws.bucket(bucket), manifest) or {}) == [0, 1]
    output = manifest.output
    if output.upload_id:
        aws.s3.upload_part(Bucket=bucket, Key=output.key, UploadId=output.upload_id, PartNumber=2, Body=b"short")
    else:
        aws.s3.put_object(Bucket=bucket, Key=shard_key("r-1", 1, SHARDS), Body=b"short")
    assert sorted(stored_shards(aws.bucket(bucket), manifest) or {}) == [0]
    with pytest.raises(
        RoundFailed, match=r"shards \[1\] are not stored with the size.*resume --round r-1` queues them again"
    ):
        publish(aws.bucket(bucket), manifest)
    assert output.key not in objects(aws, lanes_without_functions)


# --- publication ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_publishing_twice_changes_nothing(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = averaged(aws, lanes_without_functions, shape)
    bucket = lanes_without_functions.bucket
    done = publish(aws.bucket(bucket), manifest)
    first = done.latest
    assert read_global(aws, lanes_without_functions) == expected(shape)
    pointer = read(aws, lanes_without_functions, latest_key("digits"))
    again = publish(aws.bucket(bucket), manifest)
    assert replace(again.latest, published_at=first.published_at) == first
    assert again.shard_sha256 == done.shard_sha256
    assert read(aws, lanes_without_functions, latest_key("digits")) == pointer
    assert uploads(aws, lanes_without_functions) == 0
    assert objects(aws, lanes_without_functions, "rounds/r-1/shards/") == []
    assert LatestModel.from_bytes(pointer) == first


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_the_digest_of_every_shard_is_known_also_where_no_result_arrived(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = averaged(aws, lanes_without_functions, shape)
    reported = digests(await_all(aws, lanes_without_functions, manifest))
    assert sorted(reported) == [0, 1]
    bucket = lanes_without_functions.bucket
    assert publish(aws.bucket(bucket), manifest).shard_sha256 == (reported[0], reported[1])
    body = read_global(aws, lanes_without_functions)
    regions = [slice(*shard_region(manifest, shard)) for shard in range(SHARDS)]
    assert [sha256_hex(body[region]) for region in regions] == [reported[0], reported[1]]
    # The parts and shard objects are gone now: what is missing is read from the global model.
    assert publish(aws.bucket(bucket), manifest, {0: reported[0]}).shard_sha256 == (reported[0], reported[1])


def test_a_part_that_was_stored_again_meanwhile_is_listed_again(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = averaged(aws, lanes_without_functions, LARGE)
    complete, asked = aws.s3.complete_multipart_upload, []

    def once(**request: Any) -> Any:
        asked.append(request)
        if len(asked) == 1:
            raise client_error("InvalidPart", "CompleteMultipartUpload")  # an ETag that is no longer the part's
        return complete(**request)

    monkeypatch.setattr(aws.s3, "complete_multipart_upload", once)
    publish(aws.bucket(lanes_without_functions.bucket), manifest)
    assert len(asked) == 2
    assert read_global(aws, lanes_without_functions) == expected(LARGE)


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_a_shard_that_is_not_the_one_its_worker_stored_is_not_published(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = averaged(aws, lanes_without_functions, shape)
    reported = digests(await_all(aws, lanes_without_functions, manifest))
    bucket, output, forged = lanes_without_functions.bucket, manifest.output, bytes(manifest.shard_nbytes(1))
    if output.upload_id:
        aws.s3.upload_part(
            Bucket=bucket, Key=output.key, UploadId=output.upload_id, PartNumber=2, Body=forged,
            ChecksumAlgorithm="SHA256",
        )  # fmt: skip
    else:
        aws.s3.put_object(Bucket=bucket, Key=shard_key("r-1", 1, SHARDS), Body=forged)
    with pytest.raises(RoundFailed, match=rf"shard 1 of 2 was changed after.*{sha256_hex(forged)}.*{reported[1]}"):
        publish(aws.bucket(bucket), manifest, reported)
    assert objects(aws, lanes_without_functions, "models/") == []


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_who_still_waits_when_another_has_published_notices_it(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = averaged(aws, lanes_without_functions, shape)
    aws.sqs.purge_queue(QueueUrl=lanes_without_functions.result_queue_url)  # the other one has taken the results
    first = publish(aws.bucket(lanes_without_functions.bucket), manifest)
    assert stored_shards(aws.bucket(lanes_without_functions.bucket), manifest) is None
    await_all(aws, lanes_without_functions, manifest)
    assert publish(aws.bucket(lanes_without_functions.bucket), manifest).latest.etag == first.latest.etag


def test_shard_objects_that_vanish_while_they_are_put_together_mean_that_another_was_faster(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = averaged(aws, lanes_without_functions)
    bucket = lanes_without_functions.bucket
    assemble = publishing._assemble

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(publishing, "_assemble", assemble)
        publish(aws.bucket(bucket), manifest)
        assemble(*arguments)

    monkeypatch.setattr(publishing, "_assemble", overtaken)
    publish(aws.bucket(bucket), manifest)
    assert read_global(aws, lanes_without_functions) == expected()


def test_an_aborted_upload_is_named_and_nothing_is_published(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    manifest = averaged(aws, lanes_without_functions, LARGE)
    assert manifest.output.upload_id is not None
    aws.s3.abort_multipart_upload(
        Bucket=lanes_without_functions.bucket, Key=manifest.output.key, UploadId=manifest.output.upload_id
    )
    await_all(aws, lanes_without_functions, manifest)
    with pytest.raises(RoundFailed, match=r"multipart upload was aborted.*start a new round"):
        publish(aws.bucket(lanes_without_functions.bucket), manifest)
    assert objects(aws, lanes_without_functions, "models/") == []


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
def test_a_foreign_object_in_the_global_models_place_is_not_published(
    aws: AwsClients, lanes_without_functions: Deployment, shape: tuple[int, int]
) -> None:
    manifest = averaged(aws, lanes_without_functions, shape)
    aws.s3.put_object(Bucket=lanes_without_functions.bucket, Key=manifest.output.key, Body=b"not ours")
    with pytest.raises(RoundFailed, match=r"has 8 bytes, expected .*Somebody else wrote it; start a new round"):
        publish(aws.bucket(lanes_without_functions.bucket), manifest)
    assert latest_key("digits") not in objects(aws, lanes_without_functions)


def test_the_latest_pointer_never_turns_back(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    older = averaged(aws, lanes_without_functions, round_id="r-1")
    newer = averaged(aws, lanes_without_functions, round_id="r-2")
    assert older.created_at < newer.created_at
    bucket = lanes_without_functions.bucket
    publish(aws.bucket(bucket), newer)
    publish(aws.bucket(bucket), older)
    assert LatestModel.from_bytes(read(aws, lanes_without_functions, latest_key("digits"))).round_id == "r-2"
    assert read_global(aws, lanes_without_functions, "r-1") == expected()


def test_a_pointer_that_moves_meanwhile_is_read_again(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = averaged(aws, lanes_without_functions, round_id="r-1")
    newer = averaged(aws, lanes_without_functions, round_id="r-2")
    bucket, read_object = lanes_without_functions.bucket, publishing.read_object

    def slow_read(*arguments: Any) -> Any:
        found = read_object(*arguments)
        monkeypatch.setattr(publishing, "read_object", read_object)
        publish(aws.bucket(bucket), newer)  # between the older one's reading and writing
        return found

    monkeypatch.setattr(publishing, "read_object", slow_read)
    publish(aws.bucket(bucket), manifest)
    assert LatestModel.from_bytes(read(aws, lanes_without_functions, latest_key("digits"))).round_id == "r-2"
