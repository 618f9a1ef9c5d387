"""No secret, no presigned URL and no update content in any log, even where a program logs everything at DEBUG."""

from __future__ import annotations

import logging

import boto3
import numpy as np
import pytest

from lambdas.storage.logs import keep_secrets_out
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.client.api import Client
from orchestrator.client.invite import invite, prepare
from orchestrator.client.sources import from_state_dict
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round
from tests.support.rounds import working

# Text that is the tensor's content, so that it can be recognised anywhere.
CONTENT = b"these-values-are-nobodys-business"
STATE = {"w": np.frombuffer(CONTENT, np.uint8)}
SECRETS = ("x-amz-signature=", "signature=", "x-amz-security-token", "secret", "stringtosign", CONTENT.decode())


def test_nothing_secret_is_logged_by_a_round_and_an_invited_submit(
    aws: AwsClients, lanes_without_functions: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)  # the root logger, as training scripts do it
    bucket = lanes_without_functions.bucket
    inviting = prepare(aws.bucket(bucket), "r-1", model="digits", table=from_state_dict(STATE).table)
    invitation = invite(aws.bucket(bucket), inviting, "a", 60).to_json()
    member = Client("a", model="digits", deployment=lanes_without_functions)
    member.push(STATE, 3, invite=invitation)
    Client("b", model="digits", deployment=lanes_without_functions).push(STATE, 3, round_id="r-1")
    with working(aws, lanes_without_functions, 1):
        start_round(aws, lanes_without_functions, RoundRequest("digits", "r-1", 1, min_clients=2, timeout_s=30.0))
    member.pull(invite=invitation)
    logged = [f"{record.name} {record.getMessage()}".lower() for record in caplog.records]
    assert any(line.startswith("lambdas.") for line in logged), "the worker logged at all"
    assert [line for line in logged if any(secret in line for secret in SECRETS)] == []


def test_a_level_that_somebody_chose_for_a_library_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("botocore")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    keep_secrets_out()
    assert logger.level == logging.DEBUG
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    keep_secrets_out()
    assert logging.getLogger("botocore.auth").getEffectiveLevel() == logging.INFO


def test_without_that_boto3_would_log_signatures(
    aws: AwsClients, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above guards against is real: it can fail."""
    monkeypatch.setattr(logging.getLogger("botocore"), "level", logging.NOTSET)
    logging.getLogger("botocore.auth").manager._clear_cache()  # type: ignore[attr-defined]
    caplog.set_level(logging.DEBUG)
    s3 = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    s3.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})
    assert any("signature" in record.getMessage().lower() for record in caplog.records)
