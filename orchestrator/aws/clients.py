"""boto3's clients for a deployment, and messages for the errors that boto3 raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from localstack_client.session import Session as LocalStackSession

from lambdas.storage.bucket import Bucket
from lambdas.storage.logs import keep_secrets_out
from orchestrator.aws.limits import REQUESTS_AT_ONCE
from orchestrator.aws.s3 import error_code
from orchestrator.errors import NotDeployed, OrchestratorError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient


@dataclass(frozen=True)
class AwsClients:
    """boto3's clients of one deployment, for S3 and SQS. Threads may share them."""

    s3: S3Client
    sqs: SQSClient

    def bucket(self, name: str) -> Bucket:
        """A bucket that these clients reach."""
        return Bucket(self.s3, name)


def connect(region: str, endpoint_url: str | None) -> AwsClients:
    """Clients for AWS, or for the emulator at `endpoint_url` (which takes LocalStack's well-known credentials)."""
    session = _session(region, endpoint_url)
    return AwsClients(s3=_client(session, "s3", endpoint_url), sqs=_client(session, "sqs", endpoint_url))


def make_client(service: str, region: str, endpoint_url: str | None) -> Any:
    """A boto3 client of a service; see `connect`."""
    return _client(_session(region, endpoint_url), service, endpoint_url)


def _session(region: str, endpoint_url: str | None) -> Any:
    """A boto3 session. Its clients share the files that boto3 loads, which takes 0.1 s."""
    keep_secrets_out()
    if endpoint_url is None:
        return boto3.session.Session(region_name=region)
    # Emulators check the signature of presigned URLs, and accept these credentials.
    session = LocalStackSession(
        aws_access_key_id="test",
        aws_secret_access_key="test",  # not a secret  # noqa: S106  # nosec B106
        region_name=region,
    )
    # LocalStack's session accepts only a host name, and AWS_ENDPOINT_URL overrides it. The clients must use the
    # deployment's own URL.
    session._service_endpoint_mapping = dict.fromkeys(session._service_endpoint_mapping, endpoint_url)
    return session


def _client(session: Any, service: str, endpoint_url: str | None) -> Any:
    config = Config(
        max_pool_connections=REQUESTS_AT_ONCE,
        retries={"mode": "standard", "max_attempts": 6},
        connect_timeout=5,
        read_timeout=60,
        # An emulator has one host name; names such as bucket.localhost do not resolve on every machine.
        s3={"addressing_style": "path" if endpoint_url else "virtual"},
    )
    if service == "s3":
        # boto3 does not presign with Signature V4 by default, and objects under KMS keys require it.
        config = config.merge(Config(signature_version="s3v4"))
    return session.client(service, config=config)


def explain(error: ClientError | BotoCoreError) -> OrchestratorError:
    """The error of this project for one that boto3 raised, with the next step."""
    if isinstance(error, NoCredentialsError):
        return OrchestratorError(
            "No AWS credentials found. Log in (`aws sso login`) or set AWS_PROFILE, and try again."
        )
    if isinstance(error, ClientError):
        if error_code(error) == "NoSuchBucket":
            bucket = error.response["Error"].get("BucketName", "")
            return NotDeployed(
                f"The environment's bucket {bucket} does not exist. Deploy the environment: `orchestrator deploy`."
            )
        return OrchestratorError(f"AWS refused {error.operation_name}: {error}")
    return OrchestratorError(f"AWS cannot be reached: {error}")
