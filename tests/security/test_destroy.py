"""A destroy of prod while its bucket holds a model: refused before anything changes, by Terraform and by the kit."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import main
from orchestrator.deployment import protection, terraform

from .conftest import Enforcing, Prod


def _settings(enforcing: Enforcing, prod: Prod) -> dict[str, Any]:
    """Everything that protects the models."""
    s3, name = enforcing.client("s3"), prod.deployment.bucket
    key = enforcing.client("kms").describe_key(KeyId=prod.kms_key_arn)["KeyMetadata"]
    return {
        "key": (key["KeyState"], key["Enabled"], key.get("DeletionDate")),
        "versioning": s3.get_bucket_versioning(Bucket=name)["Status"],
        "policy": s3.get_bucket_policy(Bucket=name)["Policy"],
        "public access": s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"],
        "lifecycle": s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"],
        "encryption": s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"],
        "functions": sorted(f["FunctionName"] for f in enforcing.client("lambda").list_functions()["Functions"]),
    }


@pytest.fixture
def model(enforcing: Enforcing, prod: Prod) -> str:
    key = f"models/kept/{uuid4().hex}/global.safetensors"
    enforcing.client("s3").put_object(Bucket=prod.deployment.bucket, Key=key, Body=b"a model", IfNoneMatch="*")
    return key


def _endpoint(enforcing: Enforcing) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": enforcing.url, "AWS_CA_BUNDLE": enforcing.ca_bundle,
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip


def test_terraform_destroy_of_a_bucket_with_a_model_changes_nothing(
    enforcing: Enforcing, prod: Prod, model: str
) -> None:
    before = _settings(enforcing, prod)
    result = terraform.run_terraform(
        ["destroy", "-auto-approve", "-input=false", "-no-color"], prod.directory, **_endpoint(enforcing)
    )
    assert result.returncode != 0
    assert "Instance cannot be destroyed" in result.stderr
    assert _settings(enforcing, prod) == before
    assert before["key"] == ("Enabled", True, None)
    assert enforcing.client("s3").get_object(Bucket=prod.deployment.bucket, Key=model)["Body"].read() == b"a model"


def test_a_plan_that_would_give_up_the_key_is_refused_too(enforcing: Enforcing, prod: Prod) -> None:
    """Objects that it encrypts would be unreadable."""
    other = "arn:aws:kms:us-east-1:000000000000:key/11111111-1111-1111-1111-111111111111"
    result = terraform.run_terraform(
        ["plan", "-input=false", "-no-color", "-var", f"kms_key_arn={other}"], prod.directory, **_endpoint(enforcing)
    )
    assert result.returncode != 0
    assert 'keep["key"] has lifecycle.prevent_destroy set' in " ".join(result.stderr.replace("│", " ").split())


def test_orchestrator_destroy_says_what_is_there_and_changes_nothing(
    enforcing: Enforcing, prod: Prod, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _settings(enforcing, prod)
    for name, value in _endpoint(enforcing).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(terraform, "ENVIRONMENTS", prod.directory.parent)
    monkeypatch.setattr(protection, "make_client", lambda service, region, endpoint_url: enforcing.client(service))
    result = CliRunner().invoke(main, ["destroy", "--env", "prod", "--yes"])
    assert result.exit_code == 1
    assert f"s3://{prod.deployment.bucket} holds" in result.output
    assert "Nothing was destroyed." in result.output
    assert _settings(enforcing, prod) == before
