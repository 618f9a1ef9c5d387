"""A whole round with the roles that Terraform renders and nothing else; and for each role, what its neighbours may do
and it may not. Every request of it goes over TLS to an emulator that enforces the policies.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError

from lambdas.protocol.keys import global_key, latest_key, manifest_key, update_key
from lambdas.storage.bucket import Bucket
from orchestrator.client.api import Client
from orchestrator.client.invite import invite, prepare
from orchestrator.client.sources import from_state_dict
from orchestrator.client.submit import submit
from orchestrator.deployment import function_zip
from orchestrator.deployment.terraform import run_terraform
from orchestrator.errors import BadInput
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round
from orchestrator.verification.verify import verify
from orchestrator.workers import poll

from .conftest import ACCOUNT, BRANCH, REGION, REPOSITORY, SHARD_COUNTS, STATE, Enforcing, Prod

Credentials = dict[str, str]
StateDict = dict[str, np.ndarray[Any, Any]]

MODEL, ROUND = "guarded", "r-1"
# Four shards above S3's smallest part, so that functions write parts of a multipart upload.
ROWS = 6000


def weights(seed: int, rows: int = ROWS) -> StateDict:
    return {"w": np.random.default_rng(seed).standard_normal((rows, 1000), dtype=np.float32)}


@pytest.fixture(scope="session")
def roles(enforcing: Enforcing, prod: Prod) -> dict[str, Credentials]:
    """Sessions of all roles. Policies without a role are attached to roles of the test's own."""
    iam = enforcing.client("iam")
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
                "Action": ["sts:AssumeRole", "sts:TagSession"],
            }
        ],
    }

    def role(name: str) -> str:
        return str(iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"])

    rendered = {r["values"]["arn"]: r["values"]["policy"] for r in prod.resources if r["type"] == "aws_iam_policy"}
    arns = {"orchestrator": role("test-orchestrator"), "machine": role("test-machine")}
    for name, policy in (("orchestrator", "orchestrator_policy_arn"), ("machine", "worker_policy_arn")):
        document = _batches_named(rendered[prod.access[policy]])
        iam.put_role_policy(RoleName=f"test-{name}", PolicyName="x", PolicyDocument=document)
    own = {}
    for name in ("a", "b"):
        # The emulator does not fill in policy variables in resources, so what IAM does with the tag is done here.
        document = prod.access["client_policy_json"].replace("${aws:PrincipalTag/client}", name)
        own[name] = role(f"test-client-{name}")
        iam.put_role_policy(RoleName=f"test-client-{name}", PolicyName="client", PolicyDocument=document)
    # The function's own role trusts Lambda only; a second one with its policy stands for it.
    policy = iam.get_role_policy(RoleName="fedagg-prod-shards-1", PolicyName="worker")["PolicyDocument"]
    iam_worker = role("test-worker")
    iam.put_role_policy(RoleName="test-worker", PolicyName="worker", PolicyDocument=json.dumps(policy))
    return {
        **{name: enforcing.assume(arn) for name, arn in arns.items()},
        "client-a": enforcing.assume(own["a"]),
        "client-b": enforcing.assume(own["b"]),
        "worker": enforcing.assume(iam_worker),
        "ci": _github(enforcing, prod, f"repo:{REPOSITORY}:ref:refs/heads/{BRANCH}"),
    }


def _batches_named(document: str) -> str:
    """AWS allows a batch call where it allows the single one; the emulator asks for an action of its own."""
    policy = json.loads(document)
    for statement in policy["Statement"]:
        single = ("sqs:SendMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility")
        statement["Action"] += [f"{action}Batch" for action in statement["Action"] if action in single]
    return json.dumps(policy)


def _github(enforcing: Enforcing, prod: Prod, subject: str, audience: str = "sts.amazonaws.com") -> Credentials:
    """The CI role, taken with a token as GitHub's issuer writes it."""

    def part(document: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()

    now = int(time.time())
    claims = {
        "iss": "https://token.actions.githubusercontent.com", "sub": subject, "aud": audience, "iat": now,
        "nbf": now, "exp": now + 600, "jti": "1",
    }  # fmt: skip
    token = f"{part({'alg': 'RS256', 'typ': 'JWT', 'kid': '1'})}.{part(claims)}.{part({'signature': 'none'})}"
    found = enforcing.client("sts").assume_role_with_web_identity(
        RoleArn=prod.access["ci_role_arn"], RoleSessionName="test", WebIdentityToken=token
    )["Credentials"]
    return {
        "aws_access_key_id": found["AccessKeyId"],
        "aws_secret_access_key": found["SecretAccessKey"],
        "aws_session_token": found["SessionToken"],
    }


@pytest.fixture(scope="session")
def published(enforcing: Enforcing, prod: Prod, roles: dict[str, Credentials]) -> dict[str, Any]:
    """A round over four functions: two clients with roles of their own, a third that was invited."""
    bucket = prod.deployment.bucket
    for number, name in enumerate(("a", "b")):
        clients = enforcing.clients(roles[f"client-{name}"])
        assert submit(clients.bucket(bucket), ROUND, name, from_state_dict(weights(number)), number + 1).created
    orchestrator = enforcing.clients(roles["orchestrator"])
    inviting = prepare(Bucket(orchestrator.s3, bucket), ROUND, model=MODEL, table=from_state_dict(weights(2)).table)
    invitation = invite(Bucket(orchestrator.s3, bucket), inviting, "c", 600).to_json()
    assert Client("c", model=MODEL).push(weights(2), 3, invite=invitation).created
    report = start_round(orchestrator, prod.deployment, RoundRequest(MODEL, ROUND, 4, min_clients=3, timeout_s=90.0))
    return dict(report.document)


def test_a_whole_round_needs_no_more_than_the_rendered_policies(
    enforcing: Enforcing, prod: Prod, published: dict[str, Any]
) -> None:
    assert published["status"] == "published"
    assert [p["client"] for p in published["participants"]] == ["a", "b", "c"]
    assert {r["worker"].split("/")[0] for r in published["shard_results"]} <= {"fedagg-prod-shards-4"}
    data = enforcing.client("s3").get_object(Bucket=prod.deployment.bucket, Key=global_key(MODEL, ROUND))["Body"].read()
    expected = sum((n + 1) * weights(n)["w"].astype(np.float64) for n in range(3)) / 6
    assert data.endswith(np.asarray(expected, np.float32).tobytes())


def test_the_orchestrators_role_verifies_a_round(
    enforcing: Enforcing, prod: Prod, roles: dict[str, Credentials], published: dict[str, Any]
) -> None:
    orchestrator = enforcing.clients(roles["orchestrator"])
    found = verify(Bucket(orchestrator.s3, prod.deployment.bucket), ROUND)
    assert (found.data_sections, found.shards) == (3, [0, 1, 2, 3])
    with pytest.raises(BadInput, match="no round r-unknown"):
        verify(Bucket(orchestrator.s3, prod.deployment.bucket), "r-unknown")


def test_small_shards_and_orchestrator_worker_need_no_more_either(
    enforcing: Enforcing, prod: Prod, roles: dict[str, Credentials]
) -> None:
    """Shard objects instead of parts, by `orchestrator worker` with the policy for machines."""
    bucket, lane = prod.deployment.bucket, prod.deployment.lane(1)
    functions = enforcing.client("lambda")
    mapping = functions.list_event_source_mappings(FunctionName=lane.function_name)["EventSourceMappings"][0]["UUID"]
    functions.update_event_source_mapping(UUID=mapping, Enabled=False)
    clients = enforcing.clients(roles["client-a"])
    submit(clients.bucket(bucket), "r-small", "a", from_state_dict(weights(1, rows=2)), 1)
    thread = threading.Thread(
        target=poll.work, args=(enforcing.clients(roles["machine"]), prod.deployment, [lane]),
        kwargs={"idle_exit_s": 5}, daemon=True,
    )  # fmt: skip
    thread.start()
    orchestrator = enforcing.clients(roles["orchestrator"])
    report = start_round(orchestrator, prod.deployment, RoundRequest("small", "r-small", 1, timeout_s=60.0))
    thread.join(30)
    assert report.document["status"] == "published"


# --- what each may not ---------------------------------------------------------------------------------------------


def denied(call: Callable[..., Any], **parameters: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    code = caught.value.response["Error"]["Code"]
    assert code in ("AccessDenied", "AccessDeniedException", "403", "AccessDeniedFault"), code


@pytest.fixture
def of(enforcing: Enforcing, roles: dict[str, Credentials]) -> Callable[[str, str], Any]:
    return lambda service, role: enforcing.client(service, roles[role])


def test_a_client_reads_and_writes_no_other_update_and_runs_nothing(
    of: Callable[[str, str], Any], prod: Prod, published: dict[str, Any]
) -> None:
    s3, sqs, bucket = of("s3", "client-b"), of("sqs", "client-b"), prod.deployment.bucket
    theirs, own = update_key(ROUND, "a"), update_key(ROUND, "b")
    denied(s3.get_object, Bucket=bucket, Key=theirs)
    denied(s3.put_object, Bucket=bucket, Key=update_key("r-9", "a"), Body=b"x", IfNoneMatch="*")
    denied(s3.delete_object, Bucket=bucket, Key=own)
    denied(s3.get_object, Bucket=bucket, Key=manifest_key(ROUND))
    denied(s3.list_objects_v2, Bucket=bucket)
    denied(s3.list_objects_v2, Bucket=bucket, Prefix="rounds/")
    denied(s3.put_object, Bucket=bucket, Key=global_key(MODEL, "r-9"), Body=b"x", IfNoneMatch="*")
    denied(sqs.send_message, QueueUrl=prod.deployment.lane(1).queue_url, MessageBody="x")
    denied(sqs.receive_message, QueueUrl=prod.deployment.result_queue_url)
    assert s3.get_object(Bucket=bucket, Key=global_key(MODEL, ROUND))["ContentLength"] > 0
    assert s3.head_object(Bucket=bucket, Key=own)["ContentLength"] > 0


def test_a_worker_writes_no_update_sends_no_job_and_deletes_nothing(
    of: Callable[[str, str], Any], prod: Prod, published: dict[str, Any]
) -> None:
    s3, sqs, bucket = of("s3", "worker"), of("sqs", "worker"), prod.deployment.bucket
    denied(s3.put_object, Bucket=bucket, Key=update_key("r-9", "a"), Body=b"x", IfNoneMatch="*")
    denied(s3.put_object, Bucket=bucket, Key=manifest_key("r-9"), Body=b"x")
    denied(s3.put_object, Bucket=bucket, Key=latest_key(MODEL), Body=b"x")
    denied(s3.list_objects_v2, Bucket=bucket)
    denied(s3.list_objects_v2, Bucket=bucket, Prefix="models/")
    denied(s3.delete_object, Bucket=bucket, Key=update_key(ROUND, "a"))
    denied(s3.delete_object, Bucket=bucket, Key=global_key(MODEL, ROUND))
    lane, other = prod.deployment.lane(1), prod.deployment.lane(4)
    denied(sqs.send_message, QueueUrl=lane.queue_url, MessageBody="x")
    denied(sqs.receive_message, QueueUrl=other.queue_url)
    denied(sqs.receive_message, QueueUrl=prod.deployment.result_queue_url)
    denied(of("lambda", "worker").update_function_code, FunctionName=other.function_name, ZipFile=b"x")
    denied(of("iam", "worker").get_role, RoleName="fedagg-prod-shards-1")


def test_a_machine_of_workers_takes_no_failed_job_and_writes_no_update(
    of: Callable[[str, str], Any], prod: Prod, published: dict[str, Any]
) -> None:
    s3, sqs, bucket, lane = of("s3", "machine"), of("sqs", "machine"), prod.deployment.bucket, prod.deployment.lane(1)
    denied(sqs.receive_message, QueueUrl=lane.dead_letter_queue_url)
    denied(sqs.send_message, QueueUrl=lane.queue_url, MessageBody="x")
    denied(s3.put_object, Bucket=bucket, Key=update_key("r-9", "a"), Body=b"x", IfNoneMatch="*")
    denied(s3.put_object, Bucket=bucket, Key=latest_key(MODEL), Body=b"x")
    denied(s3.delete_object, Bucket=bucket, Key=global_key(MODEL, ROUND))


def test_the_orchestrator_deletes_no_update_takes_no_job_and_ships_no_code(
    of: Callable[[str, str], Any], prod: Prod, published: dict[str, Any]
) -> None:
    s3, sqs, bucket = of("s3", "orchestrator"), of("sqs", "orchestrator"), prod.deployment.bucket
    denied(s3.delete_object, Bucket=bucket, Key=update_key(ROUND, "a"))
    denied(s3.delete_object, Bucket=bucket, Key=global_key(MODEL, ROUND))
    denied(s3.put_bucket_policy, Bucket=bucket, Policy="{}")
    denied(s3.list_objects_v2, Bucket=bucket)
    denied(sqs.receive_message, QueueUrl=prod.deployment.lane(1).queue_url)
    denied(of("lambda", "orchestrator").update_function_code, FunctionName="fedagg-prod-shards-1", ZipFile=b"x")
    denied(of("iam", "orchestrator").put_role_policy, RoleName="x", PolicyName="x", PolicyDocument="{}")


def test_ci_grants_itself_nothing(of: Callable[[str, str], Any], prod: Prod) -> None:
    iam, ci_role = of("iam", "ci"), prod.access["ci_role_arn"].rsplit("/", 1)[-1]
    denied(iam.put_role_policy, RoleName=ci_role, PolicyName="x", PolicyDocument="{}")
    denied(iam.attach_role_policy, RoleName=ci_role, PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess")
    denied(iam.create_role, RoleName="x", AssumeRolePolicyDocument="{}")
    denied(iam.update_assume_role_policy, RoleName=ci_role, PolicyDocument="{}")
    denied(of("lambda", "ci").update_function_configuration, FunctionName="fedagg-prod-shards-1", Role=ci_role)
    denied(of("s3", "ci").put_bucket_policy, Bucket=prod.deployment.bucket, Policy="{}")
    denied(of("kms", "ci").put_key_policy, KeyId=prod.kms_key_arn, PolicyName="default", Policy="{}")


def test_ci_reads_the_outputs_in_the_state_and_cannot_write_it(
    enforcing: Enforcing, prod: Prod, of: Callable[[str, str], Any], roles: dict[str, Credentials], tmp_path: Path
) -> None:
    """A state that CI could write might name a provider that the next person's `terraform init` runs."""
    root = enforcing.client("s3")
    root.create_bucket(Bucket=STATE["bucket"])
    root.put_object(**_state_object(), Body=(prod.directory / "terraform.tfstate").read_bytes())
    (tmp_path / "main.tf").write_text('terraform {\n  backend "s3" {\n    use_lockfile = true\n  }\n}\n')
    backend = {
        **STATE, "region": REGION, "use_path_style": "true", "skip_credentials_validation": "true",
        "skip_requesting_account_id": "true", "skip_metadata_api_check": "true",
    }  # fmt: skip
    as_ci = {
        "AWS_ENDPOINT_URL": enforcing.url, "AWS_CA_BUNDLE": enforcing.ca_bundle,
        **{name.upper(): value for name, value in roles["ci"].items()},
    }  # fmt: skip
    options = [f"-backend-config={name}={value}" for name, value in backend.items()]
    found = run_terraform(["init", "-no-color", "-input=false", *options], tmp_path, **as_ci)
    assert found.returncode == 0, found.stdout + found.stderr
    found = run_terraform(["output", "-json", "deployment"], tmp_path, **as_ci)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["bucket"] == prod.deployment.bucket

    s3 = of("s3", "ci")
    denied(s3.put_object, **_state_object(), Body=b"{}")
    denied(s3.put_object, **_state_object(".tflock"), Body=b"{}", IfNoneMatch="*")
    denied(s3.delete_object, **_state_object())
    denied(s3.get_object, **_state_object("/../other"))
    denied(s3.list_objects_v2, Bucket=STATE["bucket"])


def _state_object(suffix: str = "") -> dict[str, str]:
    return {"Bucket": STATE["bucket"], "Key": STATE["key"] + suffix}


def test_ci_ships_code_and_changes_nothing_else_of_a_function(
    enforcing: Enforcing, prod: Prod, of: Callable[[str, str], Any]
) -> None:
    functions, name = of("lambda", "ci"), prod.deployment.lane(1).function_name
    archive = function_zip.build(function_zip.target_for("local")).read_bytes()
    functions.update_function_code(FunctionName=name, ZipFile=archive)
    functions.get_waiter("function_updated").wait(FunctionName=name)
    denied(functions.update_function_configuration, FunctionName=name, Timeout=1)
    denied(functions.delete_function, FunctionName=name)
    denied(functions.get_function, FunctionName=name)
    denied(functions.invoke, FunctionName=name, Payload=b"{}")


def test_functions_at_once_can_be_held_below_the_accounts_quota(enforcing: Enforcing, prod: Prod) -> None:
    mappings = [r["values"] for r in prod.resources if r["type"] == "aws_lambda_event_source_mapping"]
    assert [m["scaling_config"] for m in mappings] == [[{"maximum_concurrency": 3}]] * len(SHARD_COUNTS)


@pytest.mark.parametrize(
    ("subject", "audience"),
    [
        (f"repo:{REPOSITORY}:ref:refs/heads/other", "sts.amazonaws.com"),
        (f"repo:{REPOSITORY}:pull_request", "sts.amazonaws.com"),
        (f"repo:elsewhere/federation:ref:refs/heads/{BRANCH}", "sts.amazonaws.com"),
        (f"repo:{REPOSITORY}:ref:refs/heads/{BRANCH}", "somebody-else"),
    ],
)
def test_another_branch_repository_or_audience_gets_no_ci_role(
    enforcing: Enforcing, prod: Prod, subject: str, audience: str
) -> None:
    with pytest.raises(ClientError) as caught:
        _github(enforcing, prod, subject, audience)
    assert caught.value.response["Error"]["Code"] in ("AccessDenied", "InvalidIdentityToken")


# --- the bucket, the key, the wire ---------------------------------------------------------------------------------


def test_the_key_decrypts_through_the_bucket_only(
    of: Callable[[str, str], Any], prod: Prod, enforcing: Enforcing
) -> None:
    for role in ("orchestrator", "worker", "client-a"):
        denied(of("kms", role).generate_data_key, KeyId=prod.kms_key_arn, KeySpec="AES_256")
    head = enforcing.client("s3").head_object(Bucket=prod.deployment.bucket, Key=update_key(ROUND, "a"))
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", prod.kms_key_arn)


def test_nothing_goes_without_tls(enforcing: Enforcing, prod: Prod, roles: dict[str, Credentials]) -> None:
    """Policies that deny what comes without TLS are on the bucket, its log bucket and every queue."""
    policies = [json.loads(r["values"]["policy"]) for r in prod.resources if r["type"] == "aws_s3_bucket_policy"]
    policies += [json.loads(r["values"]["policy"]) for r in prod.resources if r["type"] == "aws_sqs_queue"]
    assert len(policies) == 2 + 1 + 2 * len(SHARD_COUNTS)
    for policy in policies:
        denial = next(s for s in policy["Statement"] if s["Sid"] == "DenyWithoutTLS")
        assert (denial["Effect"], denial["Principal"]) == ("Deny", "*")
        assert denial["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_requests_are_logged_to_a_bucket_of_their_own(enforcing: Enforcing, prod: Prod) -> None:
    logging_to = enforcing.client("s3").get_bucket_logging(Bucket=prod.deployment.bucket)["LoggingEnabled"]
    assert logging_to["TargetBucket"] == f"{prod.deployment.bucket}-logs"
