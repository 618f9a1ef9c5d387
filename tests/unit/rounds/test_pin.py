"""Closing a round: every update is checked before anything is queued."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import FederationError
from lambdas.protocol.keys import global_key, latest_key, update_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.storage.bucket import Bucket
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.errors import RoundFailed
from orchestrator.rounds import pin
from orchestrator.rounds.pin import Pinned, list_updates, pin_updates
from orchestrator.rounds.request import RoundRequest
from tests.support.rounds import file_bytes, put, put_bytes, queued, update_bytes, weights


def pinned(aws: AwsClients, deployment: Deployment) -> Pinned:
    updates = list_updates(aws.bucket(deployment.bucket), "r-1")
    return pin_updates(aws.bucket(deployment.bucket), RoundRequest("digits", "r-1"), updates)


def test_participants_are_pinned_in_ascending_client_id_with_etag_size_and_count(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    for client, examples in (("b", 3), ("a10", 2), ("a", 4), ("a-b", 6), ("B", 1)):
        put(aws, lanes_without_functions, client, weights(1), examples)
    result = pinned(aws, lanes_without_functions)
    # By id, not by key: "a-b.safetensors" comes before "a.safetensors".
    found = [(p.client, p.num_examples) for p in result.participants]
    assert found == [("B", 1), ("a", 4), ("a-b", 6), ("a10", 2), ("b", 3)]
    for p in result.participants:
        head = aws.s3.head_object(Bucket=lanes_without_functions.bucket, Key=p.key)
        assert (p.etag, p.size) == (head["ETag"], head["ContentLength"])
        body = aws.s3.get_object(Bucket=lanes_without_functions.bucket, Key=p.key)["Body"].read()
        assert p.data_offset == 8 + int.from_bytes(body[:8], "little")
        assert p.size - p.data_offset == result.table.nbytes
        assert p.header_sha256 == sha256_hex(body[: p.data_offset])
        assert p.data_sha256 == sha256_hex(body[p.data_offset :])


def test_an_update_of_another_tool_may_leave_its_digest_out_but_not_give_a_wrong_one(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    values = {"w": np.ones(2, np.float32)}
    body = safetensors.numpy.save(values, metadata={"num_examples": "3"})
    put_bytes(aws, lanes_without_functions, "a", body)
    (participant,) = pinned(aws, lanes_without_functions).participants
    assert (participant.num_examples, participant.data_sha256) == (3, None)
    body = safetensors.numpy.save(values, metadata={"num_examples": "3", "data_sha256": "AB" * 32})
    put_bytes(aws, lanes_without_functions, "b", body)
    with pytest.raises(RoundFailed, match=r"client b: its metadata's data_sha256 is 'ABAB.*expected a SHA-256"):
        pinned(aws, lanes_without_functions)


def test_updates_in_several_wire_dtypes_share_one_table(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    from orchestrator.client.sources import from_state_dict
    from orchestrator.client.submit import submit

    for client, wire in (("a", None), ("b", "BF16"), ("c", None), ("d", "F16"), ("e", "BF16")):
        submit(
            aws.bucket(lanes_without_functions.bucket), "r-1", client, from_state_dict(weights(1)), 1, wire=wire
        )  # fmt: skip
    result = pinned(aws, lanes_without_functions)
    assert [p.layout for p in result.participants] == [0, 1, 0, 2, 1]
    dtypes = dict(zip([t.name for t in result.table.tensors], zip(*result.layouts, strict=True), strict=True))
    assert dtypes["layer.weight"] == ("F32", "BF16", "F16")
    assert dtypes["layer.half"] == ("F16", "F16", "F16")


def bad_updates() -> dict[str, tuple[bytes, str]]:
    good = update_bytes(weights(1))
    values = weights(1)
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    said = {"__metadata__": {"num_examples": "1"}}

    def without(name: str) -> bytes:
        return update_bytes({n: v for n, v in values.items() if n != name})

    return {
        "text": (b"epoch,loss\n1,0.5\n", "not a safetensors file, or a truncated one"),
        "empty": (b"", "0 bytes long"),
        "three_bytes": (b"abc", "3 bytes long"),
        "truncated": (good[:-1], "truncated or padded"),
        "cut_in_the_header": (good[:40], "truncated one"),
        "trailing": (good + b"\0", "truncated or padded"),
        "overlap": (
            file_bytes({**said, "a": entry, "b": {**entry, "data_offsets": [4, 12]}}, bytes(12)),
            "without gaps",
        ),
        "huge": (file_bytes({**said, "a": {**entry, "shape": [2**60]}}, bytes(8)), "takes 4611686018427387904 "),
        "deep": (file_bytes(b"[" * 100_000), "not JSON"),
        "utf8": (file_bytes(b'{"\xff":{}}'), "not JSON"),
        "surrogate": (file_bytes({**said, "\ud800": entry}, bytes(8)), "not Unicode text"),
        "dtype": (file_bytes({**said, "a": {**entry, "dtype": "F8_E4M3"}}, bytes(8)), "is not averaged; supported"),
        "no_count": (file_bytes({"a": entry}, bytes(8)), "has no num_examples"),
        "zero_count": (good.replace(b'"num_examples":"1"', b'"num_examples":"0"'), "count of 0 is not a valid weight"),
        "two_signs": (file_bytes({"__metadata__": {"num_examples": "--5"}, "a": entry}, bytes(8)), "no num_examples"),
        "no_values": (file_bytes(said), "has no values: expected a model's tensors"),
        "missing_tensor": (without("scale"), "tensor 'scale' is missing; client a's update has it"),
        "extra_tensor": (update_bytes({**values, "x": np.zeros(1, np.float32)}), "tensor 'x' is unknown"),
        "other_shape": (update_bytes(weights(1, (5, 3))), r"'layer.weight' has shape \[5, 3\], expected \[3, 5\]"),
        "other_dtype": (
            update_bytes({**values, "scale": np.array(1.0, np.float64)}),
            "tensor 'scale' is F64, expected F32 as in client a's update",
        ),
    }


@pytest.mark.parametrize("name", list(bad_updates()))
def test_a_bad_update_is_named_with_the_reason_and_the_next_step_before_anything_is_queued(
    aws: AwsClients, lanes_without_functions: Deployment, name: str
) -> None:
    body, message = bad_updates()[name]
    put(aws, lanes_without_functions, "a", weights(0))
    put_bytes(aws, lanes_without_functions, "m", body)
    put(aws, lanes_without_functions, "z", weights(2))
    with pytest.raises(RoundFailed, match=message) as caught:
        pinned(aws, lanes_without_functions)
    text = str(caught.value)
    assert "1 of 3 updates cannot be averaged; nothing was queued" in text
    assert "client m: " in text
    assert f"Delete these updates under s3://{lanes_without_functions.bucket}/rounds/r-1/updates/" in text
    assert "have those clients submit again" in text
    assert queued(aws, lanes_without_functions) == 0


def test_tensors_in_another_order_are_refused_with_how_to_save_them_again(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)})
    header = {
        "__metadata__": {"num_examples": "1"},
        "y": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    put_bytes(aws, lanes_without_functions, "b", file_bytes(header, bytes(16)))
    with pytest.raises(RoundFailed, match=r"client b: its tensors are stored in another order.*orchestrator submit"):
        pinned(aws, lanes_without_functions)


def test_an_update_that_the_safetensors_library_wrote_is_as_good_as_a_submitted_one(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    import safetensors.numpy

    values = {
        **weights(1),
        "i32": np.arange(3, dtype=np.int32),
        "u8": np.arange(3, dtype=np.uint8),
        "b": np.ones(2, bool),
    }
    put(aws, lanes_without_functions, "a", values)
    put_bytes(aws, lanes_without_functions, "b", safetensors.numpy.save(values, {"num_examples": "4"}))
    assert [p.num_examples for p in pinned(aws, lanes_without_functions).participants] == [1, 4]


def test_the_first_usable_update_gives_the_table_not_the_first_broken_one(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put_bytes(aws, lanes_without_functions, "a", b"broken")
    put(aws, lanes_without_functions, "b", weights(1))
    put(aws, lanes_without_functions, "c", weights(2))
    with pytest.raises(RoundFailed, match=r"1 of 2|1 of 3") as caught:
        pinned(aws, lanes_without_functions)
    assert "client a:" in str(caught.value)
    assert "client b:" not in str(caught.value)


def test_the_models_last_global_model_gives_the_table(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    bucket, key, body = lanes_without_functions.bucket, global_key("digits", "r-0"), update_bytes(weights(0, (2, 2)))
    etag = aws.s3.put_object(Bucket=bucket, Key=key, Body=body)["ETag"]
    latest = LatestModel("digits", "r-0", key, etag, len(body), "0" * 64, 1.0, 2.0)
    aws.s3.put_object(Bucket=bucket, Key=latest_key("digits"), Body=latest.to_bytes())
    put(aws, lanes_without_functions, "a", weights(1))
    with pytest.raises(RoundFailed, match=r"expected \[2, 2\] as in global model digits of round r-0"):
        pinned(aws, lanes_without_functions)


def test_only_the_first_ten_of_many_bad_updates_are_spelled_out(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    for i in range(13):
        put_bytes(aws, lanes_without_functions, f"c{i:02d}", b"x")
    with pytest.raises(RoundFailed, match="13 of 13 updates") as caught:
        pinned(aws, lanes_without_functions)
    assert str(caught.value).count("client c") == 10
    assert "and 3 more" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "notes.txt", "sub/a.safetensors.bak", "a b.safetensors", ".safetensors", "sub/updates/b.safetensors"]
)
def test_an_object_among_the_updates_that_is_none_is_passed_over_with_a_warning(
    aws: AwsClients, lanes_without_functions: Deployment, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    put(aws, lanes_without_functions, "b", weights(2))
    key = f"rounds/r-1/updates/{name}"
    aws.s3.put_object(Bucket=lanes_without_functions.bucket, Key=key, Body=b"x")
    assert [p.client for p in pinned(aws, lanes_without_functions).participants] == ["a", "b"]
    assert "is not an update, and is ignored" in caplog.text


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_an_update_that_changes_while_the_round_closes_is_noticed(
    aws: AwsClients, lanes_without_functions: Deployment, how: str
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    put(aws, lanes_without_functions, "b", weights(2))
    updates = list_updates(aws.bucket(lanes_without_functions.bucket), "r-1")
    if how == "replaced":
        put_bytes(aws, lanes_without_functions, "b", update_bytes(weights(3)))
    else:
        aws.s3.delete_object(Bucket=lanes_without_functions.bucket, Key=update_key("r-1", "b"))
    with pytest.raises(RoundFailed, match="client b: was replaced or deleted while the round was closing"):
        pin_updates(aws.bucket(lanes_without_functions.bucket), RoundRequest("digits", "r-1"), updates)


def test_more_updates_than_a_manifest_holds_are_refused_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin, "MAX_CLIENTS", 2)
    nowhere: Any = None
    updates = [pin.Update(f"c{i}", f"k{i}", "e", 1) for i in range(3)]
    with pytest.raises(RoundFailed, match="has 3 updates; one round averages at most 2"):
        pin_updates(Bucket(nowhere, "b"), RoundRequest("digits", "r-1"), updates)


def test_updates_are_listed_beyond_a_thousand(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: put_bytes(aws, lanes_without_functions, f"c{i}", b"x"), range(1010)))
    found = [update.client for update in list_updates(aws.bucket(lanes_without_functions.bucket), "r-1")]
    assert found == sorted(f"c{i}" for i in range(1010))


def test_progress_is_told_for_every_update_also_for_bad_ones(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    put_bytes(aws, lanes_without_functions, "b", b"x")
    told: list[int] = []
    updates = list_updates(aws.bucket(lanes_without_functions.bucket), "r-1")
    with pytest.raises(FederationError):
        pin_updates(aws.bucket(lanes_without_functions.bucket), RoundRequest("digits", "r-1"), updates, told.append)
    assert told == [1, 1]
