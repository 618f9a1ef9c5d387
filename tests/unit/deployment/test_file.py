"""The deployment file: what `deploy` writes and `--deployment` reads."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.aws.deployment import Deployment, parse_deployment
from orchestrator.deployment.file import load_deployment_file, resolve_deployment, save_deployment_file
from orchestrator.errors import BadInput, OrchestratorError
from tests.unit.aws.test_deployment import LANE, OUTPUT

FULL = parse_deployment(
    OUTPUT
    | {
        "endpoint_url": "http://127.0.0.1:4566",
        "round_retention_days": 30,
        "baselines": {"lifl": {**LANE, "shards": 1, "topology": "lifl"}},
        "baselines_refused": {"lambda-fl": "The model is too large: größer als 10 GB."},
    }
)


@pytest.mark.parametrize("deployment", [FULL, parse_deployment(OUTPUT)], ids=["emulator", "aws"])
def test_a_deployment_is_read_back_as_it_was_written(deployment: Deployment, tmp_path: Path) -> None:
    assert parse_deployment(json.loads(deployment.to_json())) == deployment
    save_deployment_file(deployment, tmp_path / "deployment.json")
    assert load_deployment_file(tmp_path / "deployment.json") == deployment
    assert [path.name for path in tmp_path.iterdir()] == ["deployment.json"]


def test_the_file_has_the_form_of_terraforms_output(tmp_path: Path) -> None:
    (tmp_path / "terraform.json").write_text(json.dumps(OUTPUT | {"kms_key_arn": "unknown fields are ignored"}))
    assert load_deployment_file(str(tmp_path / "terraform.json")) == parse_deployment(OUTPUT)
    assert json.loads(parse_deployment(OUTPUT).to_json()) == OUTPUT


def test_a_deployment_or_a_path_is_accepted(tmp_path: Path) -> None:
    save_deployment_file(FULL, tmp_path / "deployment.json")
    assert resolve_deployment(FULL) is FULL
    assert resolve_deployment(tmp_path / "deployment.json") == resolve_deployment(str(tmp_path / "deployment.json"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file"), ("a\0b", "null byte")):
        with pytest.raises(BadInput, match=r"Cannot read the deployment file .*Pass the file that") as caught:
            load_deployment_file(path)
        assert str(path) in str(caught.value)
        assert reason in str(caught.value)


def changed(**fields: Any) -> bytes:
    return json.dumps(copy.deepcopy(OUTPUT) | fields).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"schema": 1, "schema": 1}', "not JSON (a name occurs twice)"),
        (b" " * 2_000_000, "more than 1,048,576 bytes"),
        (b"[]", "expected a JSON object, found []"),
        (b"{}", "field 'schema': expected an integer from 1 to 1, found nothing"),
        (json.dumps({"deployment": {"value": OUTPUT}}).encode(), "field 'schema'"),
        (changed(schema=2), "field 'schema': expected an integer from 1 to 1, found 2"),
        (changed(bucket=None), "field 'bucket'"),
        (changed(region="x y"), "field 'region': expected an AWS region, found 'x y'"),
        (changed(endpoint_url="127.0.0.1:4566"), "field 'endpoint_url': expected an http or https URL"),
        (changed(endpoint_url="http://[::1"), "field 'endpoint_url'"),
        (changed(endpoint_url="http://h:99999"), "field 'endpoint_url'"),
        (changed(lanes={"4": {**LANE, "memory_mb": 1}}), "field 'lanes.4.memory_mb'"),
    ],
)
def test_a_file_that_is_not_a_deployment_file_is_named_with_the_field(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "deployment.json"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load_deployment_file(path)
    assert str(caught.value).startswith(f"{path} is not a valid deployment file: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("or `orchestrator show-deployment` prints.")


def test_a_file_that_cannot_be_written_says_how_to_have_it_again(tmp_path: Path) -> None:
    (tmp_path / "nowhere").touch()
    with pytest.raises(OrchestratorError, match=r"dev is deployed, and .*`orchestrator show-deployment --env dev`"):
        save_deployment_file(replace(FULL, environment="dev"), tmp_path / "nowhere" / "deployment.json")
