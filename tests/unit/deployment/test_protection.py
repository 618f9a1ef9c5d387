"""`orchestrator destroy` refuses before Terraform runs, where it would lose models that the environment keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.aws.clients import AwsClients
from orchestrator.cli.main import main
from orchestrator.deployment import function_zip, terraform

BUCKET = "fedagg-prod-bucket"
MODULE = "module.aggregator.module.bucket"


def state(endpoint_url: str, *kept: str) -> dict[str, Any]:
    resources = [
        {"mode": "managed", "type": "aws_s3_bucket", "name": "this", "address": f"{MODULE}.aws_s3_bucket.this",
         "values": {"bucket": BUCKET, "region": "us-east-1"}},
        {"mode": "data", "type": "aws_s3_bucket", "name": "x", "address": "x", "values": {}},
        *({"mode": "managed", "type": "terraform_data", "name": "keep", "values": {},
           "address": f'{MODULE}.terraform_data.keep["{key}"]'} for key in kept),
    ]  # fmt: skip
    return {
        "outputs": {"deployment": {"value": {"endpoint_url": endpoint_url}}},
        "root_module": {"child_modules": [{"child_modules": [{"resources": resources}]}]},
    }


@pytest.fixture
def s3(aws: AwsClients) -> Iterator[Any]:
    """The environment's bucket, empty and versioned."""
    aws.s3.create_bucket(Bucket=BUCKET)
    aws.s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    yield aws.s3
    page = aws.s3.list_object_versions(Bucket=BUCKET)
    for version in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
        aws.s3.delete_object(Bucket=BUCKET, Key=version["Key"], VersionId=version["VersionId"])
    aws.s3.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def destroyed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Terraform was told to destroy, and to take out of its state before."""
    calls: list[Any] = []
    monkeypatch.setattr(function_zip, "variables", lambda target: {})
    monkeypatch.setattr(terraform, "destroy", lambda env, variables, give_up=(): calls.append((env, list(give_up))))
    return calls


def test_a_bucket_with_a_model_is_not_destroyed(
    s3: Any, endpoint_url: str, destroyed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terraform, "state_values", lambda env: state(endpoint_url, "bucket", "key"))
    s3.put_object(Bucket=BUCKET, Key="models/vgg/r-1/global.safetensors", Body=b"x")
    result = CliRunner().invoke(main, ["destroy", "--env", "prod", "--yes"])
    assert (destroyed, result.exit_code) == ([], 1)
    message = result.output
    assert f"s3://{BUCKET} holds 1 version of objects, such as models/vgg/r-1/global.safetensors" in message
    assert f"state rm {MODULE}.terraform_data.keep`" in message


def test_a_deleted_model_is_still_there_as_a_version(
    s3: Any, endpoint_url: str, destroyed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terraform, "state_values", lambda env: state(endpoint_url, "bucket"))
    s3.put_object(Bucket=BUCKET, Key="models/m/r/global.safetensors", Body=b"x")
    s3.delete_object(Bucket=BUCKET, Key="models/m/r/global.safetensors")
    result = CliRunner().invoke(main, ["destroy", "--env", "prod", "--yes"])
    assert destroyed == []
    assert "holds 2 versions" in result.output


def test_an_empty_bucket_is_given_up_and_destroyed(
    s3: Any, endpoint_url: str, destroyed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terraform, "state_values", lambda env: state(endpoint_url, "bucket", "key"))
    assert CliRunner().invoke(main, ["destroy", "--env", "prod", "--yes"]).exit_code == 0
    assert destroyed == [("prod", [f'{MODULE}.terraform_data.keep["{key}"]' for key in ("bucket", "key")])]


def test_where_models_may_go_nobody_looks(
    s3: Any, endpoint_url: str, destroyed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terraform, "state_values", lambda env: state(endpoint_url))
    s3.put_object(Bucket=BUCKET, Key="models/m/r/global.safetensors", Body=b"x")
    assert CliRunner().invoke(main, ["destroy", "--env", "dev", "--yes"]).exit_code == 0
    assert destroyed == [("dev", [])]
    monkeypatch.setattr(terraform, "state_values", lambda env: {})
    assert CliRunner().invoke(main, ["destroy", "--env", "dev", "--yes"]).exit_code == 0
