"""What Terraform deployed, as the rest of the kit sees it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lambdas.protocol.errors import InvalidContract
from orchestrator.aws.deployment import parse_deployment
from orchestrator.deployment import terraform
from orchestrator.deployment.load import load_deployment
from orchestrator.errors import NotDeployed

LANE = {
    "shards": 4, "queue_url": "q4", "dead_letter_queue_url": "d4", "function_name": "f4", "memory_mb": 256,
    "timeout_s": 60, "ephemeral_storage_mb": 512, "cpu_architecture": "arm64", "max_receive_count": 3,
    "maximum_concurrency": 10, "topology": "grads-sharding",
}  # fmt: skip
OUTPUT: dict[str, Any] = {
    "schema": 1,
    "environment": "dev",
    "region": "eu-central-1",
    "bucket": "fedagg-dev",
    "endpoint_url": None,
    "result_queue_url": "results",
    "round_retention_days": 7,
    "baselines": {},
    "baselines_refused": {},
    "lanes": {"4": LANE, "16": {**LANE, "shards": 16, "queue_url": "q16"}, "1": {**LANE, "shards": 1}},
}


def changed(*path: str, to: Any) -> dict[str, Any]:
    """The output with one field changed, or removed where `to` is Ellipsis."""
    document = copy.deepcopy(OUTPUT)
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return document


def test_the_output_is_parsed_with_lanes_in_ascending_shard_count() -> None:
    found = parse_deployment(OUTPUT)
    assert list(found.lanes) == [1, 4, 16]
    assert found.lane(16).queue_url == "q16"
    assert found.lane(4).maximum_concurrency == 10
    assert (found.bucket, found.region, found.endpoint_url, found.result_queue_url) == (
        "fedagg-dev", "eu-central-1", None, "results",
    )  # fmt: skip
    assert parse_deployment(changed("endpoint_url", to="http://127.0.0.1:4566")).endpoint_url == "http://127.0.0.1:4566"


def test_how_long_rounds_are_kept_is_the_environments() -> None:
    assert parse_deployment({**OUTPUT, "round_retention_days": 30}).round_retention_days == 30
    with pytest.raises(InvalidContract, match="field 'round_retention_days': expected an integer from 1 to 3650"):
        parse_deployment({**OUTPUT, "round_retention_days": 0})


def test_baseline_lanes_are_parsed_with_the_reasons_for_those_that_are_not_there() -> None:
    lane = {**LANE, "shards": 1, "function_name": "f-lifl", "topology": "lifl"}
    found = parse_deployment({**OUTPUT, "baselines": {"lifl": lane}, "baselines_refused": {"lambda-fl": "too large."}})
    assert found.lane_for("lifl", 1).function_name == "f-lifl"
    assert found.lane_for("lifl", 1).topology == "lifl"
    assert found.lane_for("grads-sharding", 4).topology == "grads-sharding"
    with pytest.raises(NotDeployed, match=r"No lane for lambda-fl: too large\."):
        found.lane_for("lambda-fl", 1)


def test_a_shard_count_without_a_lane_names_those_that_exist_and_what_to_change() -> None:
    with pytest.raises(NotDeployed) as caught:
        parse_deployment(OUTPUT).lane(6)
    assert str(caught.value) == (
        "No lane for 6 shards; deployed: 1, 4, 16. Add 6 to shard_counts in environments/dev and deploy again."
    )
    with pytest.raises(NotDeployed, match="deployed: none"):
        parse_deployment(changed("lanes", to={})).lane(1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "Terraform's output `deployment`: expected a JSON object, found None"),
        ([], r"expected a JSON object, found \[\]"),
        (changed("schema", to=2), "field 'schema': expected an integer from 1 to 1, found 2"),
        (changed("bucket", to=...), "field 'bucket': expected a Unicode string, found nothing"),
        (changed("bucket", to=7), "field 'bucket'"),
        (changed("endpoint_url", to=7), "field 'endpoint_url'"),
        (changed("lanes", to=[LANE]), r"field 'lanes': expected a JSON object, found \["),
        (
            changed("lanes", "4", to=...) | {"lanes": {"4": None}},
            "field 'lanes.4': expected a JSON object, found None",
        ),
        (
            changed("lanes", "4", "memory_mb", to=64),
            "field 'lanes.4.memory_mb': expected an integer from 128 to 10240, found 64",
        ),
        (changed("lanes", "4", "memory_mb", to="256"), "memory_mb.*found '256'"),
        (changed("lanes", "4", "timeout_s", to=901), "timeout_s.*: expected an integer from 1 to 900"),
        (changed("lanes", "4", "shards", to=0), "shards.*found 0"),
        (
            changed("lanes", "4", "cpu_architecture", to="sparc"),
            "cpu_architecture.*: expected one of arm64, x86_64",
        ),
        (changed("lanes", "4", "max_receive_count", to=...), "max_receive_count.*found nothing"),
        (changed("lanes", "4", "queue_url", to=None), "queue_url.*found None"),
    ],
)
def test_an_output_of_another_form_names_the_field(document: Any, message: str) -> None:
    with pytest.raises(InvalidContract, match=message):
        parse_deployment(document)


def test_an_environment_without_outputs_is_not_deployed_and_says_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform, "outputs", lambda environment: {})
    with pytest.raises(NotDeployed, match=r"dev is not deployed. Run `orchestrator deploy --env dev` first\."):
        load_deployment("dev")
    with pytest.raises(NotDeployed, match=r"with the emulator running .`orchestrator emulator start`"):
        load_deployment("local")


def test_a_deployment_of_another_release_is_to_be_deployed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform, "outputs", lambda environment: {"deployment": {"value": {"schema": 9}}})
    with pytest.raises(NotDeployed, match=r"field 'schema'.*Deploy environment dev again with this release"):
        load_deployment("dev")


def test_a_deployment_is_read_from_terraforms_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform, "outputs", lambda environment: {"deployment": {"value": OUTPUT, "type": "any"}})
    assert load_deployment("dev") == parse_deployment(OUTPUT)
