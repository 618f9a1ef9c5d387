"""Whether an environment may be destroyed: not while it keeps its models (`terraform_data.keep` in infra/bucket)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from botocore.exceptions import ClientError

from orchestrator.aws.clients import make_client
from orchestrator.deployment import terraform
from orchestrator.errors import OrchestratorError


def check_destroyable(environment: str) -> Sequence[str]:
    """Check that destroying an environment loses no models that it keeps.

    Returns:
        The addresses in Terraform's state that prevent a destroy, for `terraform.destroy` to remove: none if
        `force_destroy` is true.

    Raises:
        OrchestratorError: the environment keeps its models, and there are objects or versions in its buckets.
    """
    state = terraform.state_values(environment)
    resources = list(_resources(state.get("root_module", {})))
    kept = [r["address"] for r in resources if r["type"] == "terraform_data" and r["name"] == "keep"]
    if not kept:
        return []
    endpoint_url = state.get("outputs", {}).get("deployment", {}).get("value", {}).get("endpoint_url")
    for bucket in (r["values"] for r in resources if r["type"] == "aws_s3_bucket"):
        found = _versions(make_client("s3", bucket["region"], endpoint_url), bucket["bucket"])
        if found:
            module = kept[0].partition(".terraform_data.")[0]
            raise OrchestratorError(
                f"Environment {environment} keeps its objects, and s3://{bucket['bucket']} holds {found}. Nothing was "
                "destroyed. To keep the bucket and its key and destroy the rest, take them out of Terraform's state "
                f"and destroy again: `terraform -chdir=environments/{environment} state rm {module}`. "
                f"To delete everything, `terraform -chdir=environments/{environment} state rm "
                f"{module}.terraform_data.keep`, deploy with force_destroy = true, and destroy again."
            )
    return kept


def _resources(module: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (r for r in module.get("resources", []) if r["mode"] == "managed")
    for child in module.get("child_modules", []):
        yield from _resources(child)


def _versions(s3: Any, bucket: str) -> str:
    """What a bucket holds, in words; "" if it is empty or does not exist."""
    try:
        page = s3.list_object_versions(Bucket=bucket, MaxKeys=1000)
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucket":
            return ""
        raise
    found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
    if not found:
        return ""
    more = " or more" if page.get("IsTruncated") else ""
    return f"{len(found)}{more} {'version' if len(found) == 1 else 'versions'} of objects, such as {found[0]['Key']}"
