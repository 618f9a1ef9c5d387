"""AWS prices, and the constants of the predictions, each with its source.

Prices are AWS list prices of us-east-1 in US dollars, first tier, without free tier, checked in 2026; see
aws.amazon.com/lambda/pricing, /s3/pricing and /sqs/pricing. Rates are decimal bytes per second. The constants that size
functions are in orchestrator/planning/sizing.json, because Terraform reads them too.

Constants marked "fitted" were estimated from the nine rounds in benchmarks/data/paper_lambda_rounds.csv (GradsSharding,
arXiv:2604.22072); docs/planning.md describes the fit and its errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from lambdas.protocol.limits import MAX_PARTS
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
# The largest object that a single PUT stores; the trees' functions store their sums with one.
S3_MAX_PUT_BYTES = 5 * 1024**3
S3_LIST_PAGE = 1000

# SQS event source mapping, Lambda developer guide, "Scaling": concurrent invocations at the start, invocations added
# per second (300 a minute), and the maximum. Each invocation gets one job.
MAPPING_START = 5
MAPPING_PER_S = 300 / 60
MAPPING_MAX = 1000
SQS_BATCH = 10
# The mapping's pollers and the coordinator repeat a long poll that returned nothing after 20 s.
POLLERS = MAPPING_START + 1
LONG_POLL_S = 20.0

# --- network -------------------------------------------------------------------------------------------------------

# A function starts with a burst of about 290 MB per direction at 2-2.7 Gbit/s, whatever its memory, and continues at
# sizing.json's network_bytes_per_s (0.6 Gbit/s): sjakthol/aws-network-benchmark; hpides/skyrise; arXiv:2501.07771.
BURST_BYTES = 290e6
BURST_BYTES_PER_S = 290e6
# Time to the first byte of an S3 response: medians of 18-41 ms, measured from Lambda (same sources).
FIRST_BYTE_S = 0.03

# --- CPU and start-up of this project's worker (profile "streaming") -------------------------------------------------

# CPU seconds per GB averaged and stored, and per GET (presigned, over a new connection), are in sizing.json.
# Measured in the box of benchmarks.worker (benchmarks/README.md): CPU seconds and bytes of one client's entry in the
# manifest, and CPU seconds for manifest, coordinator's record and result message. boto3's clients are made in INIT.
MANIFEST_CPU_S_PER_CLIENT = 15e-6
MANIFEST_BYTES_PER_CLIENT = 350
START_CPU_S = 0.04
# INIT of a Python function that imports numpy and boto3, about 0.4 CPU seconds, billed. Lambda gives INIT more CPU than
# the memory setting implies, so this does not depend on memory. Assumed, not measured.
INIT_S = 1.0
# Assumed: one request of the coordinator, from wherever it runs; the number of requests that one round makes one after
# the other; and the time from sending a job or result message to receiving it.
COORDINATOR_REQUEST_S = 0.05
COORDINATOR_REQUESTS = 12
QUEUE_S = 0.2
# Assumed: the coordinator's own link to S3, a small virtual machine's or a good office's. A model
# passes through it twice if shards are below S3's smallest part.
COORDINATOR_BYTES_PER_S = 75e6
# Requests of the coordinator for one round, without one GET per client for the update's header and the LISTs:
# round.json, coordinator.json twice (and every 10 s of the round), manifest, create, complete, latest.json, report;
# coordinator.json, manifest, latest.json and HEADs.
ROUND_PUTS = 8
ROUND_GETS = 7

# --- the paper's handler (profile "whole-object") --------------------------------------------------------------------

# S3 gives one connection 85-90 MB/s (S3 user guide, "Performance design patterns": one request per 85-90 MB/s). A
# handler that reads one object after the other gets that rate during the burst.
CONNECTION_BYTES_PER_S = 87.5e6
# Fitted: the rate of one connection after the burst, reading or writing. The rounds range from 46 to 60 MB/s (the
# paper says 57), without a pattern in M, memory or topology.
SEQUENTIAL_BYTES_PER_S = 53e6
# Fitted: CPU seconds per GB for boto3's body, TLS and np.load. The CPU is the limit below about 525 MB of memory.
TRANSFER_CPU_S_PER_GB = 5.6
# Fitted: CPU seconds per boto3 call.
CALL_CPU_S = 0.014
# The compute_s column: 0.17-0.28 CPU seconds per GB added to the float32 sum.
SUM_CPU_S_PER_GB = 0.2
# Invoking a warm function: the single-function round took 0.06 s longer than its function.
INVOKE_S = 0.1
# The paper's 16 functions took two turns (wall 22.3 s, function 11.9 s) and its 7 took one. New accounts run
# 10 at once.
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
        s3_get_usd, s3_put_usd: requests of functions and coordinator; in the profile whole-object, of functions only.
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
        """All costs of the round, as AWS bills them."""
        parts: dict[str, float] = asdict(self)
        return sum(parts.values())

    @property
    def paper_total(self) -> float:
        """The costs that the paper counts: GB-seconds and the functions' GETs and PUTs."""
        return self.compute_usd + self.s3_get_usd + self.s3_put_usd

    def to_json(self) -> dict[str, float]:
        """The parts and both totals, US dollars."""
        return {**asdict(self), "total_usd": self.total, "paper_total_usd": self.paper_total}


def compute_usd(
    billed_s: float, memory_mb: int, cpu_architecture: str, ephemeral_storage_mb: int = LAMBDA_STORAGE_FREE_MB
) -> float:
    """US dollars for `billed_s` seconds, summed over all invocations, of functions of `memory_mb` MB."""
    storage_mb = max(0, ephemeral_storage_mb - LAMBDA_STORAGE_FREE_MB)
    per_s = memory_mb / 1024 * LAMBDA_USD_PER_GB_S[cpu_architecture] + storage_mb / 1024 * LAMBDA_STORAGE_USD_PER_GB_S
    return billed_s * per_s


def upload_puts(nbytes: int) -> int:
    """PUT-class requests of one upload by orchestrator.aws.s3.create_large_object: parts, create and complete."""
    if nbytes <= MULTIPART_ABOVE:
        return 1
    part = max(PART_BYTES, -(-nbytes // MAX_PARTS))
    return -(-nbytes // part) + 2


def sqs_requests(jobs: int, seconds: float) -> int:
    """SQS requests of a round of `jobs` jobs that takes `seconds`: jobs, results and empty polls.

    Jobs are sent in batches, received one by one and deleted. Results are received and deleted in batches of up to ten,
    but usually arrive one by one, and are counted so.
    """
    batches = -(-jobs // SQS_BATCH)
    return batches + 5 * jobs + round(POLLERS * seconds / LONG_POLL_S)
