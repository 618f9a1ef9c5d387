"""Predicts the time and the cost of a round for every configuration that could run it, and recommends one.

The time models are in streaming.py (this project's worker) and paper_model.py (the paper's handler), constants and
prices in prices.py, and the sizing rule, which Terraform shares, in sizing.py. docs/planning.md compares predictions
with measured rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

from lambdas.protocol.limits import MAX_SHARDS
from lambdas.protocol.topologies import GRADS_SHARDING
from orchestrator.aws.deployment import Lane
from orchestrator.errors import PlanningError
from orchestrator.planning import prices
from orchestrator.planning.lane_size import size_lane
from orchestrator.planning.paper_model import whole_object
from orchestrator.planning.plan import Plan, mark, recommended
from orchestrator.planning.prediction import Prediction
from orchestrator.planning.prices import CostBreakdown
from orchestrator.planning.question import Account, Choices, Configuration, Question, check_round
from orchestrator.planning.shapes import shape_of
from orchestrator.planning.streaming import streaming

_SHARD_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, MAX_SHARDS)
_MEMORIES_MB = (256, 512, 1024, 1769, 3008)
# Smaller shards are not tried by default: the start of a function would take longer than its work.
_MIN_SHARD_BYTES = 1024**2


def predict(question: Question, configuration: Configuration) -> Plan:
    """Predict one configuration. A configuration that cannot work is a Plan that is not feasible, with a reason."""
    shape = shape_of(configuration.topology, question.model_bytes, question.clients, configuration.shards)
    cpu_architecture = configuration.cpu_architecture or ("x86_64" if question.is_paper else "arm64")
    found = (whole_object if question.is_paper else streaming)(shape, question, configuration.memory_mb)
    cost = _cost(found, cpu_architecture)
    usd = cost.paper_total if question.is_paper else cost.total
    reasons = [*found.obstacles, *_exceeded(question, found.seconds, usd)]
    return Plan(
        topology=configuration.topology,
        shards=shape.shards,
        memory_mb=found.memory_mb,
        cpu_architecture=cpu_architecture,
        predicted_seconds=found.seconds,
        predicted_cost_usd=usd,
        cost_breakdown=cost,
        peak_memory_mb=found.peak_memory_mb,
        invocations=found.invocations,
        s3_gets=found.s3_gets,
        s3_puts=found.s3_puts,
        client_puts=found.client_puts,
        sqs_requests=found.sqs_requests,
        feasible=not reasons,
        reason=" ".join(reasons),
    )


def _cost(found: Prediction, cpu_architecture: str) -> CostBreakdown:
    return CostBreakdown(
        compute_usd=prices.compute_usd(found.billed_s, found.memory_mb, cpu_architecture, found.ephemeral_storage_mb),
        function_requests_usd=found.invocations * prices.LAMBDA_USD_PER_REQUEST,
        s3_get_usd=found.s3_gets * prices.S3_GET_USD,
        s3_put_usd=found.s3_puts * prices.S3_PUT_USD,
        client_upload_usd=found.client_puts * prices.S3_PUT_USD,
        sqs_usd=found.sqs_requests * prices.SQS_USD,
    )


def _exceeded(question: Question, seconds: float, usd: float) -> list[str]:
    exceeded = []
    if question.deadline_s is not None and seconds > question.deadline_s:
        exceeded.append(f"Takes {seconds:,.1f} s, the deadline is {question.deadline_s:g} s.")
    if question.budget_usd is not None and usd > question.budget_usd:
        exceeded.append(f"Costs ${usd:.6f}, the budget is ${question.budget_usd:g}.")
    return exceeded


def plan_round(question: Question, choices: Choices | None = None) -> list[Plan]:
    """Predict every configuration and mark the cheapest, the fastest and the recommended of the feasible ones.

    With a deadline, the cheapest that meets it is recommended; without, the fastest of those that cost at most 1.25
    times the cheapest. Both stay in the budget, if there is one.

    Returns:
        Plans by topology, shards, memory and CPU architecture; infeasible ones with their reasons.

    Raises:
        PlanningError: one of the choices is out of its range.
    """
    choices = choices or Choices()
    plans = []
    for topology in dict.fromkeys(choices.topologies):
        for shards in _shard_counts(topology, question, choices):
            by_rule = predict(question, Configuration(shards, topology, None, choices.cpu_architectures[0]))
            for memory_mb in _memories(by_rule, choices.memories_mb, question.account.memory_cap_mb):
                for cpu_architecture in dict.fromkeys(choices.cpu_architectures):
                    plans.append(predict(question, Configuration(shards, topology, memory_mb, cpu_architecture)))
    return mark(plans, question.deadline_s)


def _shard_counts(topology: str, question: Question, choices: Choices) -> Sequence[int | None]:
    if topology != GRADS_SHARDING:
        return [None]
    if choices.shard_counts is not None:
        return sorted(set(choices.shard_counts))
    most = max(1, question.model_bytes // _MIN_SHARD_BYTES)
    return [shards for shards in _SHARD_COUNTS if shards <= most]


def _memories(by_rule: Plan, asked: Sequence[int] | None, memory_cap_mb: int) -> list[int | None]:
    """Function memories to try. None stands for the rule's memory, which can be more than Lambda offers."""
    if asked is not None:
        return [*sorted(set(asked))]
    others = {m for m in (*_MEMORIES_MB, memory_cap_mb) if by_rule.peak_memory_mb <= m <= memory_cap_mb}
    memories = sorted(others | {by_rule.memory_mb})
    return [None if memory_mb == by_rule.memory_mb else memory_mb for memory_mb in memories]


def choose_lane(model_bytes: int, clients: int, lanes: Sequence[Lane]) -> Lane:
    """The deployed lane that is recommended: the fastest that costs at most 1.25 times the cheapest.

    Raises:
        PlanningError: no lane can average the round; names each lane's reason and the next step.
    """
    check_round(model_bytes, clients)
    if not lanes:
        raise PlanningError("No lanes are deployed. Set shard_counts in the environment and deploy it.")
    feasible: list[tuple[Plan, Lane]] = []
    reasons = []
    for lane in lanes:
        # The account's memory cap was checked when the lane was deployed.
        account = Account(prices.LAMBDA_MAX_MEMORY_MB, lane.maximum_concurrency)
        plan = predict(
            Question(model_bytes, clients, account=account),
            Configuration(lane.shards, memory_mb=lane.memory_mb, cpu_architecture=lane.cpu_architecture),
        )
        reason = plan.reason or _lane_too_small(model_bytes, clients, lane)
        if reason:
            reasons.append(f"{lane.shards} shards: {reason}")
        else:
            feasible.append((plan, lane))
    if not feasible:
        raise PlanningError(
            f"No deployed lane can average {clients:,} updates of {model_bytes:,} bytes. {' '.join(reasons)} "
            "Add a shard count that `orchestrator plan` finds feasible to shard_counts, or set the environment's "
            "model_bytes and clients, and deploy it again."
        )
    best = recommended([plan for plan, _ in feasible])
    return next(lane for plan, lane in feasible if plan is best)


def _lane_too_small(model_bytes: int, clients: int, lane: Lane) -> str:
    # A lane is sized for the environment's model_bytes and clients, and a round may be larger than those.
    need = size_lane(
        model_bytes,
        clients,
        lane.shards,
        memory_cap_mb=prices.LAMBDA_MAX_MEMORY_MB,
        memory_mb_override=lane.memory_mb,
    )
    if need.expected_s > lane.timeout_s:
        return f"A shard takes up to {need.expected_s:,.0f} s, the lane's timeout is {lane.timeout_s} s."
    if need.ephemeral_storage_mb > lane.ephemeral_storage_mb:
        return (
            f"A shard needs {need.ephemeral_storage_mb:,} MB of ephemeral storage, the lane has "
            f"{lane.ephemeral_storage_mb:,} MB."
        )
    return ""
