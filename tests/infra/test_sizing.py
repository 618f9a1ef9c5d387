"""The sizing rule of infra/sizing: at points worked out by hand, and against the planner's rule over a grid of cases.

All cases are one `terraform apply` of the module, which has no resources, so that no provider is needed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from lambdas.protocol.topologies import GRADS_SHARDING, LAMBDA_FL, LIFL
from lambdas.protocol.tree import Tree
from orchestrator.deployment.terraform import run_terraform
from orchestrator.errors import PlanningError
from orchestrator.paths import ROOT
from orchestrator.planning.lane_size import LaneSize, size_lane
from orchestrator.planning.sizing import load_sizing

MIB = 2**20
SIZED = ("memory_mb", "timeout_s", "ephemeral_storage_mb", "expected_s", "parallel_jobs", "refused")
# Terraform's words and the planner's, for each of the four limits.
LIMITS = (
    ("function_memory_cap_mb is", "the cap is"),
    ("a single PUT takes 5 GiB", "a single PUT takes 5 GiB"),
    ("a function may run 900 s", "Lambda stops it after 900 s"),
    ("MB in /tmp", "MB of ephemeral storage"),
)


@dataclass(frozen=True)
class Case:
    """The arguments of the rule, by the names of the module's variables."""

    model_bytes: int
    clients: int = 20
    shards: int = 1
    topology: str = GRADS_SHARDING
    function_memory_cap_mb: int = 3008
    memory_mb_override: int | None = None


# A worker needs 96 MB and 4 MB per 1000 clients, a quarter more is kept free, in steps of 64 MB from 256 MB. It reads
# 75 MB/s, or what its CPU share (0.000565291 vCPU per MB) allows at 1.7 CPU seconds per GB, and takes 3 ms of a CPU per
# client. The timeout is four times the expected time, 60 to 900 s. `/tmp` holds the shard and 272 MB.
BY_HAND: dict[str, tuple[Case, dict[str, Any]]] = {
    "a small round gets the least of everything": (
        Case(1000), {"memory_mb": 256, "timeout_s": 60, "ephemeral_storage_mb": 512, "parallel_jobs": 1, "refused": ""},
    ),
    "memory does not grow with the model": (Case(20_000_000_000, shards=64), {"memory_mb": 256, "parallel_jobs": 64}),
    # (96 + 108.8) x 1.25 = 256
    "memory is the least just below the step": (Case(1000, clients=27_200), {"memory_mb": 256}),
    "one more client takes the next step": (Case(1000, clients=27_201), {"memory_mb": 320}),
    # (96 + 211.2) x 1.25 = 384; 211.2 has no exact binary form
    "a step that is filled exactly is enough": (Case(1000, clients=52_800), {"memory_mb": 384}),
    # (96 + 400) x 1.25 = 620
    "the most clients fit in 640 MB": (
        Case(1000, clients=100_000, function_memory_cap_mb=640), {"memory_mb": 640, "timeout_s": 900, "refused": ""},
    ),
    "memory above the cap is refused": (
        Case(1000, clients=100_000, function_memory_cap_mb=512),
        {"refused": "Lane for 1 shard: its function needs 640 MB for 100000 clients, and function_memory_cap_mb is "
         "512. Raise function_memory_cap_mb (up to 10240, if the account allows it) or lower clients."},
    ),
    "memory can be given": (Case(1000, memory_mb_override=1769), {"memory_mb": 1769}),
    # 21 x 102,261,126 B at 75 MB/s = 28.63 s, and 20 x 3 ms in 256 x 0.000565291 vCPU = 0.41 s
    "the timeout is four times the expected time": (Case(409_044_504, shards=4), {"timeout_s": 117}),
    # 21 x 142,269,252 B at 75 MB/s + 0.41 s = 40.25000003 s, where a seventh of the bytes would give 161 s
    "a shard is rounded up to whole bytes": (Case(995_884_763, shards=7), {"timeout_s": 162}),
    # 128 MB are 0.0724 vCPU: 42.6 MB/s instead of 75 MB/s, and 0.83 s for 20 requests
    "a slow CPU lengthens the timeout": (Case(10**9, shards=7, memory_mb_override=128), {"timeout_s": 286}),
    # 201 x 312.5 MB at 75 MB/s = 837.5 s, and 4.1 s
    "the timeout ends at Lambda's": (Case(5 * 10**9, clients=200, shards=16), {"timeout_s": 900, "refused": ""}),
    # 100 x 673,460,762 B at 75 MB/s = 897.948 s, and 99 x 3 ms in 256 x 0.000565291 vCPU = 2.052 s
    "just at Lambda's limit is allowed": (Case(673_460_762, clients=99), {"timeout_s": 900, "refused": ""}),
    "a byte over Lambda's limit is refused": (
        Case(673_460_763, clients=99),
        {"refused": "Lane for 1 shard: averaging 673460763 bytes over 99 clients takes about 901 s, and a function may "
         "run 900 s. Use more shards."},
    ),
    "240 MiB fit the least room": (Case(240 * MIB), {"ephemeral_storage_mb": 512}),
    "a byte more takes a megabyte more": (Case(240 * MIB + 1), {"ephemeral_storage_mb": 513}),
    # 596.05 MiB of the shard and 192 MiB of sums, within 272
    "sums of a hundred clients lie beside the shard": (
        Case(5 * 10**9, clients=100, shards=8), {"ephemeral_storage_mb": 597 + 272},
    ),
    "almost ten gigabytes fit": (Case(9968 * MIB, clients=1), {"ephemeral_storage_mb": 10240, "refused": ""}),
    "a shard larger than /tmp is refused": (
        Case(9968 * MIB + 1, clients=1),
        {"refused": "Lane for 1 shard: a shard of 10452205569 bytes needs 10241 MB in /tmp, and a function may have "
         "10240 MB. Use more shards."},
    ),
    # 190.7 MB of float64 sums, and 1.25 x 96.1 MB; ceil(27 / 6) and 27 / 3 leaves
    "lambda-FL holds the whole model": (
        Case(10**8, clients=27, topology=LAMBDA_FL), {"memory_mb": 320, "parallel_jobs": 5, "refused": ""},
    ),
    "LIFL has more leaves": (Case(10**8, clients=27, topology=LIFL), {"memory_mb": 320, "parallel_jobs": 9}),
    # 318 x 212 MB at 75 MB/s = 898.9 s, and 2.0 s for the requests
    "requests can make a tree too slow": (
        Case(106_000_000, clients=100_000, topology=LAMBDA_FL),
        {"refused": "An aggregator of lambda-fl takes about 901 s for 100000 clients and a model of 106000000 bytes, "
         "and a function may run 900 s. Only grads-sharding averages this round."},
    ),
}  # fmt: skip

GRID = [
    *itertools.starmap(
        Case,
        itertools.product(
            (1, 33_554_433, 537_206_056, 5_000_000_000, 10 * 2**40), (1, 64, 999, 100_000), (1, 7, 10_000),
            (GRADS_SHARDING,), (640, 10_240), (None, 128, 10_240),
        ),
    ),
    *itertools.starmap(
        Case,
        itertools.product(
            (1, 106_000_000, 1_400_000_000, 2_684_354_560, 2_684_354_561), (1, 20, 1000, 1001, 100_000), (1,),
            (LAMBDA_FL, LIFL), (128, 3008, 10_240), (None, 10_240),
        ),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Mapping[str, Any]]:
    """What infra/sizing makes of every case."""
    directory = tmp_path_factory.mktemp("sizing")
    cases = [*dict.fromkeys([*(case for case, _ in BY_HAND.values()), *GRID])]
    (directory / "cases.json").write_text(json.dumps({str(i): asdict(case) for i, case in enumerate(cases)}))
    arguments = "".join(f"{name} = each.value.{name}\n" for name in asdict(cases[0]))
    outputs = "".join(f"{name} = size.{name}\n" for name in SIZED)
    module = os.path.relpath(ROOT / "infra/sizing", directory)  # a local module's path begins with a dot
    (directory / "main.tf").write_text(
        f'module "sizing" {{\nsource = "{module}"\nfor_each = jsondecode(file("cases.json"))\n{arguments}}}\n'
        f'output "sizes" {{\nvalue = {{ for i, size in module.sizing : i => {{\n{outputs}}} }}\n}}\n'
    )
    for command in (["init", "-input=false"], ["apply", "-input=false", "-auto-approve"]):
        result = run_terraform([*command, "-no-color"], directory)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    found = json.loads(run_terraform(["output", "-json", "sizes"], directory).stdout)
    return {case: found[str(i)] for i, case in enumerate(cases)}


@pytest.mark.parametrize(("case", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_the_rule_at_points_worked_out_by_hand(
    sizes: dict[Case, Mapping[str, Any]], case: Case, expected: dict[str, Any]
) -> None:
    assert {name: sizes[case][name] for name in expected} == expected


def planned(case: Case) -> tuple[LaneSize | None, str]:
    """The planner's size, or why it refuses."""
    try:
        return size_lane(
            case.model_bytes, case.clients, case.shards, topology=case.topology,
            memory_cap_mb=case.function_memory_cap_mb, memory_mb_override=case.memory_mb_override,
        ), ""  # fmt: skip
    except PlanningError as error:
        return None, str(error)


def test_terraform_and_the_planner_size_lanes_alike(sizes: dict[Case, Mapping[str, Any]]) -> None:
    for case, found in sizes.items():
        size, refused = planned(case)
        limits = [(there in found["refused"], here in refused) for there, here in LIMITS]
        if size is None:
            assert sorted(limits) == [(False, False)] * 3 + [(True, True)], (case, found["refused"], refused)
            continue
        assert found["refused"] == "", case
        assert found["expected_s"] == pytest.approx(size.expected_s, rel=1e-12), case
        for name in ("memory_mb", "timeout_s", "ephemeral_storage_mb"):
            assert found[name] == getattr(size, name), (case, name)
        tree = case.topology != GRADS_SHARDING
        assert found["parallel_jobs"] == (Tree(case.topology, case.clients).widths[0] if tree else case.shards), case


def test_the_grid_reaches_every_limit_and_lanes_that_fit(sizes: dict[Case, Mapping[str, Any]]) -> None:
    for there, _ in LIMITS:
        assert any(there in found["refused"] for found in sizes.values()), there
    assert sum(found["refused"] == "" for found in sizes.values()) > len(sizes) / 4


def test_the_constants_name_the_files_that_read_them() -> None:
    """The path of the constants is in Terraform once, and leads to the file that the planner reads."""
    lines = [line for path in (ROOT / "infra").rglob("*.tf") for line in path.read_text().splitlines()]
    [line] = [line for line in lines if "sizing.json" in line]
    path = (ROOT / "infra/sizing" / line.split('file("${path.module}/')[1].split('"')[0]).resolve()
    constants = json.loads(path.read_text())
    assert constants["timeout_max_s"] == load_sizing().timeout_max_s
    for name in constants["about"].split("Read by ")[1].split(",")[0].split(" and by "):
        assert (ROOT / name).exists(), name
