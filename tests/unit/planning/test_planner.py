from __future__ import annotations

import csv
import io
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdas.averaging.pacing import Pacing
from lambdas.protocol.topologies import TOPOLOGIES
from lambdas.storage.bucket import Bucket
from orchestrator.aws.deployment import Lane
from orchestrator.aws.limits import MULTIPART_ABOVE
from orchestrator.aws.s3 import create_large_object
from orchestrator.errors import PlanningError
from orchestrator.planning import planner, prices
from orchestrator.planning.chart import write_chart
from orchestrator.planning.lane_size import size_lane
from orchestrator.planning.plan import KNEE, Plan, format_table
from orchestrator.planning.planner import choose_lane, plan_round
from orchestrator.planning.question import Account, Choices, Configuration, Question
from orchestrator.planning.shapes import shape_of
from orchestrator.planning.streaming import ramp_up
from tests.support.s3 import MemoryS3

MIB = 1024**2
GIB = 1024**3
VGG16 = round(512.3 * MIB)
ROUNDS = Path(__file__).parents[3] / "benchmarks" / "data" / "paper_lambda_rounds.csv"
TOLERANCE = 0.25


def predict(model_bytes: int, clients: int, **fields: Any) -> Plan:
    """The plan of one configuration; `fields` are those of Question, Account and Configuration."""
    account = Account(**{name: fields.pop(name) for name in ("memory_cap_mb", "concurrency") if name in fields})
    asked = {name: fields.pop(name) for name in ("profile", "deadline_s", "budget_usd") if name in fields}
    question = Question(model_bytes, clients, account=account, **asked)
    return planner.predict(question, Configuration(**fields))


def measured_rounds() -> list[dict[str, str]]:
    with ROUNDS.open(newline="") as file:
        return list(csv.DictReader(file))


def round_name(row: dict[str, str]) -> str:
    return "-".join([row["experiment"], row["model"], row["topology"], row["shards"] or "tree"])


def as_measured(row: dict[str, str], *, memory_mb: int | None) -> Plan:
    return predict(
        round(float(row["gradient_mib"]) * MIB),
        int(row["clients"]),
        topology=row["topology"],
        shards=int(row["shards"]) if row["shards"] else None,
        memory_mb=memory_mb,
        profile="whole-object",
    )


each_round = pytest.mark.parametrize("row", measured_rounds(), ids=round_name)


# --- the paper's rounds --------------------------------------------------------------------------------------------


@each_round
def test_whole_object_agrees_with_the_measured_round(row: dict[str, str]) -> None:
    plan = as_measured(row, memory_mb=int(row["memory_mb"]))
    assert plan.feasible
    assert plan.predicted_seconds == pytest.approx(float(row["wall_s"]), rel=TOLERANCE)
    assert plan.predicted_cost_usd == pytest.approx(float(row["cost_usd"]), rel=TOLERANCE)


@pytest.mark.parametrize("row", [row for row in measured_rounds() if row["experiment"] == "comparison"], ids=round_name)
def test_whole_object_agrees_when_the_rule_chooses_the_memory(row: dict[str, str]) -> None:
    plan = as_measured(row, memory_mb=None)
    assert plan.predicted_seconds == pytest.approx(float(row["wall_s"]), rel=TOLERANCE)
    assert plan.predicted_cost_usd == pytest.approx(float(row["cost_usd"]), rel=TOLERANCE)


@each_round
def test_whole_object_counts_requests_as_measured(row: dict[str, str]) -> None:
    plan = as_measured(row, memory_mb=int(row["memory_mb"]))
    assert (plan.invocations, plan.s3_gets, plan.s3_puts) == (
        int(row["invocations"]),
        int(row["s3_gets"]),
        int(row["s3_puts"]),
    )


def test_the_papers_memory_rule() -> None:
    # VGG-16: 3 x 128.075 + 450 = 834.2 and 3 x 512.3 + 450 = 1986.9, as in the paper's table.
    assert predict(VGG16, 20, shards=4, profile="whole-object").memory_mb == 835
    assert predict(VGG16, 20, topology="lifl", profile="whole-object").memory_mb == 1987


def log_errors(row: dict[str, str]) -> tuple[float, float]:
    plan = as_measured(row, memory_mb=int(row["memory_mb"]))
    return (
        math.log(plan.predicted_seconds / float(row["wall_s"])),
        math.log(plan.predicted_cost_usd / float(row["cost_usd"])),
    )


def test_each_measured_round_is_predicted_by_a_fit_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured_rounds()
    errors: list[list[tuple[float, float]]] = []
    for rate, cpu, spread in itertools.product(range(46, 61, 2), (5.0, 5.5, 6.0, 6.5), (0.04, 0.07, 0.1)):
        monkeypatch.setattr(prices, "SEQUENTIAL_BYTES_PER_S", rate * 1e6)
        monkeypatch.setattr(prices, "TRANSFER_CPU_S_PER_GB", cpu)
        monkeypatch.setattr(prices, "FUNCTION_SPREAD", spread)
        errors.append([log_errors(row) for row in rows])
    for left_out in range(len(rows)):
        best = min(errors, key=lambda e: sum(s * s + c * c for i, (s, c) in enumerate(e) if i != left_out))
        assert max(abs(error) for error in best[left_out]) < math.log(1.3), round_name(rows[left_out])


# --- the model, by hand --------------------------------------------------------------------------------------------


def test_whole_object_seconds_and_dollars_by_hand() -> None:
    plan = predict(90_000_000, 2, shards=1, memory_mb=3008, profile="whole-object")
    calls = 3 * (0.03 + 0.014)
    function_s = calls + 180 / 87.5 + 90 / 87.5 + 0.18 * 0.2
    assert plan.predicted_seconds == pytest.approx(function_s + 0.1)
    assert plan.predicted_cost_usd == pytest.approx(function_s * 3008 / 1024 * 0.0000166667 + 2 * 4e-7 + 5e-6)
    # All in: two uploads and one invocation more.
    assert plan.cost_breakdown.total == pytest.approx(plan.predicted_cost_usd + 2 * 5e-6 + 0.2e-6)


def test_streaming_seconds_and_requests_by_hand() -> None:
    plan = predict(75_000_000, 10, shards=1, memory_mb=1769, cpu_architecture="arm64")
    reading = 1 + (750e6 + 10 * 175 - 290e6) / 75e6
    writing = 75 / 290
    function_s = 0.04 + 10 * 15e-6 + reading + writing + 3 * 0.03
    assert plan.predicted_seconds == pytest.approx((10 / 32 + 12) * 0.05 + 2 * 0.2 + 1.0 + function_s, rel=1e-5)
    assert plan.cost_breakdown.compute_usd == pytest.approx((1.0 + function_s) * 1769 / 1024 * 0.0000133334, rel=1e-5)
    # GETs: 10 headers, 7 of the coordinator, 10 ranges, manifest and coordinator's record. PUTs: 8, 1 part, LIST of
    # updates and of parts.
    assert (plan.s3_gets, plan.s3_puts, plan.invocations) == (29, 11, 1)
    # 75 MB go up in one request, below 128 MiB.
    assert plan.client_puts == 10
    assert plan.peak_memory_mb == 97


def test_streaming_is_bound_by_the_cpu_share_in_small_functions() -> None:
    # 128 MB are 0.0724 vCPU, 43 MB/s at 1.7 CPU seconds per GB: slower than the network's 75 MB/s.
    small = predict(10**9, 20, shards=4, memory_mb=128)
    assert small.predicted_seconds > 5e9 / 42.6e6
    assert predict(10**9, 20, shards=4, memory_mb=512).predicted_seconds < 5e9 / 42.6e6


def test_beyond_64_clients_a_get_reads_a_window_of_96_mib_of_one_client() -> None:
    overhead = prices.ROUND_GETS + 2 * 4  # and per shard the manifest and the coordinator's record
    assert predict(400 * MIB, 64, shards=4).s3_gets == 64 * 4 + 64 + overhead
    assert predict(400 * MIB, 65, shards=4).s3_gets == 65 * 4 * 2 + 65 + overhead


def test_shards_below_5_mib_are_put_together_by_the_coordinator() -> None:
    parts, objects = predict(40 * MIB, 20, shards=8), predict(40 * MIB, 20, shards=9)
    assert parts.s3_gets == 20 * 8 + 2 * 8 + 20 + prices.ROUND_GETS
    assert objects.s3_gets == 20 * 9 + 2 * 9 + 20 + prices.ROUND_GETS + 9
    # One PUT of the model, in place of creating and completing a multipart upload.
    assert objects.s3_puts == parts.s3_puts + 1 + 1 - 2


@pytest.mark.parametrize(
    ("topology", "clients", "expected"),
    [
        ("grads-sharding", 20, [[(3, 20)]]),
        ("lambda-fl", 20, [[(4, 5)], [(1, 4)]]),
        ("lambda-fl", 10, [[(2, 4), (1, 2)], [(1, 3)]]),
        ("lambda-fl", 1, [[(1, 1)], [(1, 1)]]),
        ("lifl", 20, [[(6, 3), (1, 2)], [(2, 3), (1, 1)], [(1, 3)]]),
        ("lifl", 27, [[(9, 3)], [(3, 3)], [(1, 3)]]),
        ("lifl", 1, [[(1, 1)], [(1, 1)], [(1, 1)]]),
    ],
)
def test_levels_of_the_trees(topology: str, clients: int, expected: object) -> None:
    assert shape_of(topology, 1000, clients, 3).levels == expected


def test_the_queue_starts_five_workers_and_adds_five_a_second() -> None:
    assert ramp_up(5, 10.0, 1000) == (11.0, 5)
    assert ramp_up(6, 10.0, 1000)[0] == pytest.approx(11.2)
    assert ramp_up(105, 60.0, 1000)[0] == pytest.approx(61 + 20.0)
    assert ramp_up(105, 60.0, 1000)[1] == 105
    assert ramp_up(3, 10.0, 1) == (31.0, 1)


def test_a_round_waits_for_functions_that_the_account_does_not_run_at_once() -> None:
    turns = predict(VGG16, 20, shards=16, memory_mb=3008, profile="whole-object")
    at_once = predict(VGG16, 20, shards=16, memory_mb=3008, profile="whole-object", concurrency=1000)
    assert 1.5 < turns.predicted_seconds / at_once.predicted_seconds < 2
    assert turns.predicted_cost_usd == at_once.predicted_cost_usd


# --- prices --------------------------------------------------------------------------------------------------------


def test_gigabyte_seconds_and_storage_above_512_mb_are_billed() -> None:
    assert prices.compute_usd(100, 1024, "x86_64") == pytest.approx(0.00166667)
    assert prices.compute_usd(100, 1024, "arm64") == pytest.approx(0.00133334)
    assert prices.compute_usd(100, 1024, "arm64", 1536) == pytest.approx(0.00133334 + 100 * 0.0000000309)


def test_sqs_requests_of_a_round() -> None:
    # 12 jobs: two batches; received, deleted; results sent, received, deleted; six pollers ask twice in 40 s.
    assert prices.sqs_requests(12, 40.0) == 2 + 12 * 5 + 12


@pytest.mark.parametrize("size", [1, MULTIPART_ABOVE, MULTIPART_ABOVE + 1])
def test_upload_puts_are_those_that_an_upload_makes(size: int) -> None:
    s3: Any = MemoryS3()
    create_large_object(Bucket(s3, "bucket"), "key", io.BytesIO(bytes(size)), size)
    assert prices.upload_puts(size) == len(s3.calls)


# --- properties ----------------------------------------------------------------------------------------------------

sizes = st.integers(1, 64 * GIB)
counts = st.integers(1, 5000)
shard_counts = st.integers(1, 512)
memories = st.sampled_from([128, 256, 512, 1769, 3008])
profiles = st.sampled_from(["streaming", "whole-object"])


@given(sizes, counts, st.integers(1, 200), shard_counts, memories, profiles)
def test_more_clients_are_never_cheaper_or_faster(
    size: int, clients: int, more: int, shards: int, memory_mb: int, profile: str
) -> None:
    few = predict(size, clients, shards=shards, memory_mb=memory_mb, profile=profile)
    many = predict(size, clients + more, shards=shards, memory_mb=memory_mb, profile=profile)
    assert many.predicted_cost_usd > few.predicted_cost_usd
    assert many.predicted_seconds >= few.predicted_seconds
    assert many.peak_memory_mb >= few.peak_memory_mb


@given(sizes, counts, shard_counts, memories, st.sampled_from(TOPOLOGIES), profiles)
def test_every_prediction_is_finite_and_adds_up(
    size: int, clients: int, shards: int, memory_mb: int, topology: str, profile: str
) -> None:
    common = {"topology": topology, "shards": shards, "memory_mb": memory_mb, "profile": profile}
    arm, x86 = (predict(size, clients, cpu_architecture=cpu, **common) for cpu in ("arm64", "x86_64"))
    assert 0 < arm.predicted_seconds < math.inf
    assert 0 < arm.predicted_cost_usd < x86.predicted_cost_usd
    cost = arm.cost_breakdown
    assert cost.total == pytest.approx(
        cost.compute_usd
        + cost.function_requests_usd
        + cost.s3_get_usd
        + cost.s3_put_usd
        + cost.client_upload_usd
        + cost.sqs_usd
    )
    assert arm.feasible == (arm.reason == "")
    if arm.feasible:
        assert arm.peak_memory_mb <= arm.memory_mb


@given(sizes, counts, memories, memories)
def test_more_memory_is_never_slower(size: int, clients: int, one: int, other: int) -> None:
    slow, fast = (predict(size, clients, shards=4, memory_mb=m).predicted_seconds for m in sorted((one, other)))
    assert fast <= slow


@settings(max_examples=30)
@given(sizes, counts, st.none() | st.floats(1, 3000), st.none() | st.floats(1e-5, 1.0), profiles)
def test_marks_are_on_the_right_plans(
    size: int, clients: int, deadline_s: float | None, budget_usd: float | None, profile: str
) -> None:
    plans = plan_round(Question(size, clients, profile, deadline_s, budget_usd))
    feasible = [plan for plan in plans if plan.feasible]
    marks = [mark for plan in plans for mark in plan.marks]
    assert sorted(marks) == (["cheapest", "fastest", "recommended"] if feasible else [])
    for plan in feasible:
        assert deadline_s is None or plan.predicted_seconds <= deadline_s
        assert budget_usd is None or plan.predicted_cost_usd <= budget_usd
    if feasible:
        least = min(plan.predicted_cost_usd for plan in feasible)
        marked = {mark: plan for plan in plans for mark in plan.marks}
        assert all(plan.feasible for plan in marked.values())
        assert marked["cheapest"].predicted_cost_usd == least
        assert marked["fastest"].predicted_seconds == min(plan.predicted_seconds for plan in feasible)
        assert marked["recommended"].predicted_cost_usd <= (least if deadline_s else KNEE * least)


# --- what is infeasible, and why -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model_bytes": 5 * GIB, "clients": 20, "shards": 1}, "Lambda stops it after 900 s: use more shards"),
        ({"model_bytes": 10 * GIB, "clients": 1, "shards": 1}, "MB of ephemeral storage"),
        ({"model_bytes": 6 * GIB, "clients": 1, "shards": 1}, "larger than S3's largest part, 5 GiB"),
        ({"model_bytes": 10, "clients": 2, "shards": 11}, "some would be empty"),
        ({"model_bytes": GIB, "clients": 20, "shards": 4, "memory_mb": 4096}, "the cap is 3,008 MB"),
        ({"model_bytes": GIB, "clients": 100_000, "shards": 512, "memory_mb": 256}, "needs 496 MB of memory"),
        (
            {"model_bytes": 3 * GIB, "clients": 2, "topology": "lambda-fl"},
            "holds the complete model as float64 sums and needs 6,272 MB for a model of 3,221,225,472 bytes, the cap "
            "is 3,008 MB: use grads-sharding, or raise the cap",
        ),
        (
            {"model_bytes": 3 * GIB, "clients": 2, "topology": "lambda-fl", "memory_cap_mb": 10_240},
            "a single PUT takes 5 GiB",
        ),
        (
            {"model_bytes": 6 * GIB, "clients": 2, "topology": "lifl", "memory_cap_mb": 10_240},
            "the cap is 10,240 MB",
        ),
        (
            {"model_bytes": GIB, "clients": 5000, "topology": "lambda-fl"},
            "stops it after 900 s: use grads-sharding",
        ),
        ({"model_bytes": GIB, "clients": 20, "shards": 4, "deadline_s": 1.0}, "the deadline is 1 s"),
        ({"model_bytes": GIB, "clients": 20, "shards": 4, "budget_usd": 0.001}, "the budget is $0.001"),
        (
            {"model_bytes": GIB, "clients": 20, "topology": "lifl", "profile": "whole-object"},
            "about 3,182 MB; the function has 3,008 MB (cap 3,008 MB): use grads-sharding",
        ),
        (
            {"model_bytes": GIB, "clients": 20, "shards": 1, "profile": "whole-object"},
            "the function has 3,008 MB (cap 3,008 MB): use more shards",
        ),
        (
            {"model_bytes": GIB, "clients": 200, "shards": 4, "profile": "whole-object"},
            "Lambda stops it after 900 s: use more shards",
        ),
    ],
)
def test_infeasible_plans_say_why(arguments: dict[str, Any], expected: str) -> None:
    arguments = dict(arguments)
    plan = predict(arguments.pop("model_bytes"), arguments.pop("clients"), **arguments)
    assert not plan.feasible
    assert expected in plan.reason


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model_bytes": 0}, "model_bytes is 0: expected an integer from 1 to 10,995,116,277,760"),
        ({"model_bytes": -5}, "model_bytes is -5"),
        ({"model_bytes": 11 * 1024**4}, "model_bytes is 12094627905536"),
        ({"clients": 0}, "clients is 0: expected an integer from 1 to 100,000"),
        ({"clients": True}, "clients is True"),
        ({"shards": None}, "grads-sharding needs a shard count"),
        ({"shards": 10_001}, "shards is 10001: expected an integer from 1 to 10,000"),
        ({"memory_mb": 64}, "memory_mb is 64: expected an integer from 128 to 10,240"),
        ({"memory_cap_mb": 20_000}, "memory_cap_mb is 20000"),
        ({"concurrency": 0}, "account_concurrency is 0"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0: expected more than 0 seconds"),
        ({"budget_usd": math.nan}, "budget_usd is nan: expected more than 0 dollars"),
        ({"profile": "pickled"}, "profile is 'pickled': expected one of streaming, whole-object"),
        ({"cpu_architecture": "riscv"}, "cpu_architecture is 'riscv': expected one of arm64, x86_64"),
        ({"topology": "ring"}, "topology is 'ring'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], expected: str) -> None:
    arguments = {"model_bytes": MIB, "clients": 3, "shards": 1} | arguments
    with pytest.raises(PlanningError) as error:
        predict(arguments.pop("model_bytes"), arguments.pop("clients"), **arguments)
    assert expected in str(error.value)


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(PlanningError, match="shard_counts is empty"):
        Choices(shard_counts=[])


# --- plans ---------------------------------------------------------------------------------------------------------


def test_a_plan_covers_topologies_shards_memories_and_cpu_architectures() -> None:
    plans = plan_round(Question(VGG16, 20))
    assert {plan.topology for plan in plans} == set(TOPOLOGIES)
    assert {1, 2, 4, 8, 16, 32, 64} <= {plan.shards for plan in plans if plan.shards}
    assert {256, 512, 1024, 1769, 3008} <= {plan.memory_mb for plan in plans}
    assert {plan.cpu_architecture for plan in plans} == {"arm64", "x86_64"}
    asked = plan_round(Question(VGG16, 20), Choices([4], [512], ["arm64"], ["grads-sharding"]))
    assert [(plan.shards, plan.memory_mb, plan.cpu_architecture) for plan in asked] == [(4, 512, "arm64")]
    assert asked[0].marks == ("cheapest", "fastest", "recommended")


def test_more_shards_buy_latency_with_requests() -> None:
    one, sixteen = (predict(VGG16, 20, shards=m) for m in (1, 16))
    assert sixteen.predicted_seconds < one.predicted_seconds / 8
    assert sixteen.s3_gets > 7 * one.s3_gets


def test_a_deadline_recommends_the_cheapest_that_meets_it() -> None:
    plans = plan_round(Question(VGG16, 20, deadline_s=60.0))
    (recommended,) = (plan for plan in plans if "recommended" in plan.marks)
    assert "cheapest" in recommended.marks
    assert recommended.predicted_seconds <= 60
    assert any("the deadline is 60 s" in plan.reason for plan in plans)


def test_models_beyond_the_trees_are_left_to_sharding() -> None:
    plans = plan_round(Question(5 * GIB, 20, "whole-object"))
    assert {plan.topology for plan in plans if plan.feasible} == {"grads-sharding"}


def test_json_has_the_documented_fields() -> None:
    plan = plan_round(Question(VGG16, 20))[0]
    document = json.loads(json.dumps(plan.to_json()))
    assert {
        "topology", "shards", "memory_mb", "cpu_architecture", "predicted_seconds", "predicted_cost_usd", "feasible",
        "reason",
    } <= set(document)  # fmt: skip
    assert document["predicted_cost_usd"] == pytest.approx(document["cost_breakdown"]["total_usd"])
    assert document["shards"] == 1
    assert predict(VGG16, 20, topology="lifl").to_json()["shards"] is None


def test_the_table_is_aligned_and_shows_marks_and_reasons() -> None:
    plans = plan_round(Question(5 * GIB, 20))
    lines = format_table(plans).splitlines()
    assert len(lines) == len(plans) + 1
    assert len({line.index(plan.cpu_architecture) for line, plan in zip(lines[1:], plans, strict=True)}) == 1
    assert sum("recommended" in line for line in lines) == 1
    assert any("infeasible: A shard of 5,368,709,120 bytes" in line for line in lines)
    best = format_table(plans, best_only=True).splitlines()
    assert len(best) < len(lines) / 4
    assert sum("cheapest" in line or "fastest" in line or "recommended" in line for line in best) == 3


# --- lanes ---------------------------------------------------------------------------------------------------------


def test_a_lane_is_sized_by_the_rule() -> None:
    lane = size_lane(400_000_000, 20, 4)
    # 21 transfers of 100 MB at 75 MB/s, and 20 requests of 3 ms in 0.14 CPUs.
    # 96.08 MB and a quarter are below the least memory of 256 MB.
    assert (lane.memory_mb, lane.timeout_s, lane.ephemeral_storage_mb) == (256, 114, 512)
    assert lane.expected_s == pytest.approx(28.415, abs=1e-3)


def test_a_lane_for_many_clients_has_memory_for_the_manifest() -> None:
    assert size_lane(1000, 100_000, 1).memory_mb == 640  # (96 + 400) x 1.25 = 620, in steps of 64
    assert size_lane(1000, 40_000, 1).memory_mb == 320  # (96 + 160) x 1.25 = 320 exactly


def test_a_lane_with_little_memory_is_bound_by_its_cpu_share() -> None:
    # 128 x 0.000565291 vCPU / 1.7 s per GB = 42,563,087 bytes/s; 2.1 GB take 49.34 s, 20 requests 0.83 s.
    lane = size_lane(400_000_000, 20, 4, memory_mb_override=128)
    assert (lane.memory_mb, lane.timeout_s) == (128, 201)
    assert lane.expected_s == pytest.approx(50.168, abs=1e-3)


def test_a_lane_for_large_shards_has_storage_for_its_output() -> None:
    assert size_lane(4 * GIB, 1, 1).ephemeral_storage_mb == 4096 + 272
    assert size_lane(4 * GIB + 1, 1, 1).ephemeral_storage_mb == 4097 + 272


def test_a_lane_has_storage_for_the_sums_that_a_worker_parks_beside_its_shard() -> None:
    parked = Pacing().window_elements * 8
    for model_bytes, clients in ((5 * 10**9, 100), (8 * 10**9, 66)):
        assert size_lane(model_bytes, clients, 8).ephemeral_storage_mb * 2**20 > model_bytes // 8 + parked


def test_the_timeout_stays_between_a_minute_and_lambdas_limit() -> None:
    assert size_lane(1000, 1, 1).timeout_s == 60
    assert size_lane(3 * 10**9, 20, 1).timeout_s == 900  # 840 s expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model_bytes": 5 * GIB}, "takes a function 1,504 s at 75 MB/s, Lambda stops it after 900 s: use more shards"),
        ({"model_bytes": 10 * GIB, "clients": 1}, "needs 10,512 MB of ephemeral storage, Lambda has 10,240 MB"),
        ({"clients": 100_000, "memory_cap_mb": 512}, "need functions of 640 MB, the cap is 512 MB. Raise the cap"),
        ({"memory_mb_override": 4096}, "need functions of 4,096 MB, the cap is 3,008 MB"),
        ({"shards": 0}, "shards is 0"),
        ({"clients": -1}, "clients is -1"),
    ],
)
def test_lanes_that_cannot_work_are_refused(arguments: dict[str, Any], expected: str) -> None:
    arguments = {"model_bytes": MIB, "clients": 20, "shards": 1} | arguments
    with pytest.raises(PlanningError) as error:
        size_lane(arguments.pop("model_bytes"), arguments.pop("clients"), arguments.pop("shards"), **arguments)
    assert expected in str(error.value)


def test_the_timeout_has_time_for_the_requests_of_many_clients_with_small_shards() -> None:
    # 3,001 transfers of 250 kB take 10.0 s; 3,000 requests of 3 ms, in 256 x 0.000565291 of a CPU, 62.2 s.
    assert size_lane(10**6, 3000, 4).timeout_s == 289


def lane(shards: int, **fields: Any) -> Lane:
    """A deployed lane, by default with Lambda's longest timeout and largest storage."""
    fields = {"timeout_s": 900, "ephemeral_storage_mb": 10_240, **fields}
    return Lane(shards, "queue", "dead", "function", 256, cpu_architecture="arm64", max_receive_count=3, **fields)


def test_the_lane_that_the_planner_recommends_is_chosen() -> None:
    lanes = [lane(1), lane(4), lane(16)]
    assert choose_lane(VGG16, 20, lanes).shards == 16
    assert choose_lane(100_000, 5, lanes).shards == 1


def test_a_lane_whose_functions_cannot_all_run_at_once_is_predicted_so() -> None:
    # 16 functions in eight turns of two take longer than 4 at once.
    assert choose_lane(VGG16, 20, [lane(4), lane(16)]).shards == 16
    assert choose_lane(VGG16, 20, [lane(4), lane(16, maximum_concurrency=2)]).shards == 4


def test_lanes_that_would_fail_are_passed_over() -> None:
    # One function would need 1,504 s; four need 376 s.
    assert choose_lane(5 * GIB, 20, [lane(1), lane(4)]).shards == 4
    assert choose_lane(VGG16, 20, [lane(1), lane(4, timeout_s=30)]).shards == 1
    assert choose_lane(10**6, 3000, [lane(1), lane(4, timeout_s=60)]).shards == 1
    spooling = [lane(2, ephemeral_storage_mb=512), lane(4, ephemeral_storage_mb=4096)]
    assert choose_lane(8 * GIB, 2, spooling).shards == 4


def test_no_lane_that_works_is_an_error_with_reasons_and_next_step() -> None:
    with pytest.raises(PlanningError) as error:
        choose_lane(50 * GIB, 20, [lane(1), lane(64, timeout_s=60)])
    assert "1 shards: A shard of 53,687,091,200 bytes" in str(error.value)
    assert "64 shards: A shard takes up to 235 s, the lane's timeout is 60 s." in str(error.value)
    assert "Add a shard count" in str(error.value)
    with pytest.raises(PlanningError, match="No lanes are deployed"):
        choose_lane(MIB, 1, [])


# --- chart ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_chart_is_written(tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plan{suffix}"
    write_chart(plan_round(Question(VGG16, 20), Choices(memories_mb=[512], cpu_architectures=["arm64"])), path)
    assert path.read_bytes().startswith(start)


def test_charts_that_cannot_be_drawn_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = plan_round(Question(VGG16, 20), Choices([1, 4], [512]))
    with pytest.raises(PlanningError, match=r"expected \.png or \.svg"):
        write_chart(plans, tmp_path / "plan.pdf")
    with pytest.raises(PlanningError, match="There is no directory"):
        write_chart(plans, tmp_path / "missing" / "plan.png")
    with pytest.raises(PlanningError, match="no configuration is feasible"):
        write_chart(plan_round(Question(VGG16, 20, deadline_s=0.1)), tmp_path / "plan.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlanningError, match=r"pip install 'fedagg\[plot\]'"):
        write_chart(plans, tmp_path / "plan.png")
