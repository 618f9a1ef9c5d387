"""What a round is billed, and every constant that predictions rest on, each with its source. No model in here.

Prices are AWS list prices of us-east-1 in US dollars, first tier, without free tier, checked in 2026; see
aws.amazon.com/lambda/pricing, /s3/pricing and /sqs/pricing. Rates are decimal bytes per second. What Terraform sizes
functions by stands in orchestrator/planning/sizing.json, because Terraform reads it too.

Constants marked "fitted" were estimated from the nine rounds in benchmarks/data/paper_lambda_rounds.csv (GradsSharding,
arXiv:2604.22072); docs/planning.md says how, and how far to trust them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from orchestrator.aws.limits import MULTIPART_ABOVE, PART_BYTES

# --- prices --------------------------------------------------------------------------------------------------------

# Lambda, per GB-second of configured memory (1 GB = 1,024 MB), billed per millisecond, INIT included since 2025-08.
LAMBDA_USD_PER_GB_S: Mapping[str, float] = {"arm64": 0.0000133334, "x86_64": 0.0000166667}
LAMBDA_USD_PER_REQUEST = 0.20e-6
# Lambda, ephemeral storage above what is free.
LAMBDA_STORAGE_USD_PER_GB_S = 0.0000000309
LAMBDA_STORAGE_FREE_MB = 512

# S3 Standard. PUT, POST (CreateMultipartUpload, CompleteMultipartUpload) and LIST cost the same; HEAD costs a GET.
S3_PUT_USD = 0.005 / 1000
S3_GET_USD = 0.0004 / 1000

# SQS standard queue, per request of up to 64 KiB. A batch is one request.
SQS_USD = 0.40e-6

# --- limits --------------------------------------------------------------------------------------------------------

# Lambda developer guide, "Lambda quotas".
LAMBDA_MIN_MEMORY_MB = 128
LAMBDA_MAX_MEMORY_MB = 10_240
LAMBDA_MAX_S = 900.0
LAMBDA_CONCURRENCY = 1000
# New accounts get 3,008 MB and fewer concurrent executions than 1,000 until they have used Lambda for a while.
NEW_ACCOUNT_MEMORY_MB = 3008
# S3 user guide, "Optimizing performance": GETs per second and prefix. A round's updates share a prefix.
S3_GETS_PER_S = 5500.0
# S3 takes a single PUT up to this size; the trees' functions store their sums with one.
S3_MAX_PUT_BYTES = 5 * 1024**3
S3_LIST_PAGE = 1000

# SQS event source mapping, Lambda developer guide, "Scaling": concurrent invocations at the start, added per second
# (300 a minute), and at most. One job to an invocation.
MAPPING_START = 5
MAPPING_PER_S = 300 / 60
MAPPING_MAX = 1000
SQS_BATCH = 10
# The mapping's pollers and the orchestrator ask again when a long poll of 20 s comes back empty.
POLLERS = MAPPING_START + 1
LONG_POLL_S = 20.0

# --- network -------------------------------------------------------------------------------------------------------

# A function starts with a burst of about 290 MB per direction at 2-2.7 Gbit/s, whatever its memory, and goes on with
# sizing.json's network_bytes_per_s (0.6 Gbit/s): sjakthol/aws-network-benchmark; hpides/skyrise; arXiv:2501.07771.
BURST_BYTES = 290e6
BURST_BYTES_PER_S = 290e6
# Time to the first byte of an S3 answer, measured from Lambda at 18-41 ms in the median (same sources).
FIRST_BYTE_S = 0.03

# --- CPU and start-up of this kit's worker (profile "streaming") -----------------------------------------------------

# CPU seconds per GB averaged and stored, and per GET (presigning and sending it over a new connection): sizing.json.
# All measured in the box of benchmarks.worker, see its README: parsing one client's entry of the manifest; manifest,
# coordinator's record and result message. boto3's clients are made in INIT.
MANIFEST_CPU_S_PER_CLIENT = 15e-6
MANIFEST_BYTES_PER_CLIENT = 350
START_CPU_S = 0.04
# INIT of a Python function that imports numpy and boto3, about 0.4 s of CPU, billed. Lambda gives INIT more CPU than
# the memory setting says, so this does not depend on memory. Assumed, not measured by us.
INIT_S = 1.0
# One request of the orchestrator, from wherever it runs; how many one round makes in turn; and job or result message
# to receiver (assumed).
ORCHESTRATOR_REQUEST_S = 0.05
ORCHESTRATOR_REQUESTS = 12
QUEUE_S = 0.2
# The orchestrator's own link to S3, which carries a model twice where shards are below S3's smallest part (assumed:
# a small virtual machine or a good office link).
ORCHESTRATOR_BYTES_PER_S = 75e6
# Requests of the orchestrator for one round, beside one GET per client for the update's header and the LISTs:
# round.json, coordinator.json twice (and every 10 s of the round), manifest, create, complete, latest.json, report;
# coordinator.json, manifest, latest.json and HEADs.
ROUND_PUTS = 8
ROUND_GETS = 7

# --- the paper's handler (profile "whole-object") --------------------------------------------------------------------

# S3 gives one connection 85-90 MB/s (S3 user guide, "Performance design patterns": one request per 85-90 MB/s). A
# handler that reads one object after the other sees that in the burst.
CONNECTION_BYTES_PER_S = 87.5e6
# Fitted: what one connection carries after the burst, reading or writing. The rounds range from 46 to 60 MB/s (the
# paper says 57), without a pattern in M, memory or topology.
SEQUENTIAL_BYTES_PER_S = 53e6
# Fitted: CPU seconds per GB through boto3's body, TLS and np.load. It binds below about 525 MB of memory.
TRANSFER_CPU_S_PER_GB = 5.6
# Fitted: CPU seconds per boto3 call.
CALL_CPU_S = 0.014
# The compute_s column: 0.17-0.28 CPU seconds per GB added to the float32 sum.
SUM_CPU_S_PER_GB = 0.2
# Invoking a warm function: the single-function round took 0.06 s longer than its function.
INVOKE_S = 0.1
# The paper's 16 functions took two turns (wall 22.3 s, function 11.9 s), its 7 one: new accounts run 10 at a time.
PAPER_CONCURRENCY = 10
# The paper's memory rule: this many times the shard (or gradient) plus a base.
PAPER_COPIES = 3
PAPER_BASE_MB = 450
# Python, numpy and boto3 in memory, without data.
RUNTIME_MB = 110

# --- both ------------------------------------------------------------------------------------------------------------

# Fitted: standard deviation between functions that do the same work, relative to their time. A round waits for the
# slowest.
FUNCTION_SPREAD = 0.07


@dataclass(frozen=True)
class CostBreakdown:
    """What one round costs, in US dollars.

    Attributes:
        compute_usd: GB-seconds, INIT and paid ephemeral storage included.
        function_requests_usd: one per invocation.
        s3_get_usd, s3_put_usd: of functions and orchestrator (profile whole-object: of the functions).
        client_upload_usd: the PUTs, parts included, with which clients store their updates.
        sqs_usd: jobs, results and empty polls while the round runs.
    """

    compute_usd: float
    function_requests_usd: float
    s3_get_usd: float
    s3_put_usd: float
    client_upload_usd: float
    sqs_usd: float

    @property
    def total(self) -> float:
        """All of it: what the bill says."""
        parts: dict[str, float] = asdict(self)
        return sum(parts.values())

    @property
    def paper_total(self) -> float:
        """As the paper counts: GB-seconds and the functions' GETs and PUTs; no uploads, request fees or SQS."""
        return self.compute_usd + self.s3_get_usd + self.s3_put_usd

    def to_json(self) -> dict[str, float]:
        """The parts and both totals, dollars."""
        return {**asdict(self), "total_usd": self.total, "paper_total_usd": self.paper_total}


def compute_usd(billed_s: float, memory_mb: int, cpu: str, ephemeral_storage_mb: int = LAMBDA_STORAGE_FREE_MB) -> float:
    """Dollars for `billed_s` function seconds, summed over invocations, of `memory_mb` MB on `cpu`."""
    storage_mb = max(0, ephemeral_storage_mb - LAMBDA_STORAGE_FREE_MB)
    per_s = memory_mb / 1024 * LAMBDA_USD_PER_GB_S[cpu] + storage_mb / 1024 * LAMBDA_STORAGE_USD_PER_GB_S
    return billed_s * per_s


def upload_puts(nbytes: int) -> int:
    """PUT-class requests of one upload by orchestrator.aws.create_large_object: the parts, create and complete."""
    if nbytes <= MULTIPART_ABOVE:
        return 1
    part = max(PART_BYTES, -(-nbytes // 10_000))
    return -(-nbytes // part) + 2


def sqs_requests(jobs: int, seconds: float) -> int:
    """Requests for `jobs` jobs: sent, received one by one, deleted; a result each; and empty polls for `seconds`.

    Results are received and deleted in batches of up to ten, but usually arrive one by one: counted as such.
    """
    batches = -(-jobs // SQS_BATCH)
    return batches + 5 * jobs + round(POLLERS * seconds / LONG_POLL_S)
