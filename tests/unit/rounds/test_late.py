"""Late updates that another round takes over."""

from __future__ import annotations

from lambdas.protocol.keys import update_key
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.rounds.late import take_over
from orchestrator.rounds.pin import list_updates


def test_late_updates_are_copied_once_and_never_over_a_newer_one(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    s3, bucket = aws.s3, lanes_without_functions.bucket

    def put(round_id: str, client: str, body: bytes) -> None:
        s3.put_object(Bucket=bucket, Key=update_key(round_id, client), Body=body)

    def stored(client: str) -> bytes:
        return s3.get_object(Bucket=bucket, Key=update_key("r-2", client))["Body"].read()

    for client in "ab":
        put("r-1", client, b"late " + client.encode())
    put("r-1", "empty", b"")
    put("r-2", "b", b"newer b")
    late = list_updates(Bucket(s3, bucket), "r-1")
    assert take_over(Bucket(s3, bucket), "r-2", late) == ["a"]
    assert (stored("a"), stored("b")) == (b"late a", b"newer b")
    put("r-1", "a", b"replaced")
    assert take_over(Bucket(s3, bucket), "r-2", late) == []
    assert stored("a") == b"late a"
    assert s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
