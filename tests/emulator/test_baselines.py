"""lambda-FL and LIFL end to end: Terraform's lanes, Lambda functions, SQS, S3."""

from __future__ import annotations

import pytest

from lambdas.protocol.keys import partials_prefix
from lambdas.protocol.topologies import TREES
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.client.api import Client
from orchestrator.planning.lane_size import size_lane
from tests.support.deployed import CLIENTS, MODEL_BYTES, Terminal
from tests.support.models import reference_average, state_dict

COUNTS = {"alpha": 120, "bravo": 7, "charlie": 1, "delta": 3001, "echo": 64}


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_averages_on_functions_to_the_bytes_of_the_reference(
    deployed: Deployment, aws: AwsClients, terminal: Terminal, tree: str
) -> None:
    updates = {name: (state_dict(seed, 300), count) for seed, (name, count) in enumerate(COUNTS.items())}
    for name, (weights, count) in updates.items():
        Client(name, model=tree, deployment=deployed).push(weights, count, round_id=f"{tree}-1")
    report = terminal.run(
        "start-round", "--model", tree, "--round", f"{tree}-1", "--topology", tree, "--min-clients", "5"
    )
    key = report["global_model"]["key"]
    assert aws.s3.get_object(Bucket=deployed.bucket, Key=key)["Body"].read() == reference_average(updates)
    assert [row["aggregators"] for row in report["levels"]] == ([2, 1] if tree == "lambda-fl" else [3, 2, 1])
    assert all(r["worker"].startswith(f"{deployed.baselines[tree].function_name}/") for r in report["shard_results"])
    assert "Contents" not in aws.s3.list_objects_v2(Bucket=deployed.bucket, Prefix=partials_prefix(f"{tree}-1"))


def test_terraform_sizes_the_trees_lanes_by_the_planners_rule(deployed: Deployment) -> None:
    assert set(deployed.baselines) == set(TREES)
    for tree, lane in deployed.baselines.items():
        size = size_lane(MODEL_BYTES, CLIENTS, 1, topology=tree)
        assert (lane.memory_mb, lane.timeout_s) == (size.memory_mb, size.timeout_s)
        assert lane.ephemeral_storage_mb == size.ephemeral_storage_mb
