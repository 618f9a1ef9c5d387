"""Runs large rounds on the emulator: 4 clients, 16 shards, up to 1 GiB per client, functions of 256 MB.

    python -m benchmarks.large_round                     64, 256 and 1,024 MiB
    python -m benchmarks.large_round --mib 64 --mib 128

Terraform deploys the lane, the functions average, and the published file is compared byte by byte with a reference
that is computed separately. Times are those of an emulator on this machine; bytes, memory and requests are those of
AWS. Needs about 8 times the largest update in memory, because the emulator keeps objects there, and twice the largest
update in /tmp.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lambdas.protocol.safetensors import global_header
from lambdas.protocol.tensor_table import TensorSpec, TensorTable
from orchestrator.aws.clients import AwsClients, connect
from orchestrator.aws.deployment import Deployment
from orchestrator.client.fetch import fetch
from orchestrator.client.sources import Tensors
from orchestrator.client.submit import submit
from orchestrator.deployment import function_zip, terraform
from orchestrator.deployment.load import load_deployment
from orchestrator.emulators import emulator
from orchestrator.progress import Narration, StderrNarration, elapsed_time
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round

CLIENTS, SHARDS, MEMORY_MB = 4, 16, 256
_COUNTS = [120, 7, 3001, 64]
_BLOCK = 4 * 1024**2  # values


def values(client: int, count: int) -> Iterator[np.ndarray]:
    """A client's weights, float32, block by block: the same on every call."""
    for block, start in enumerate(range(0, count, _BLOCK)):
        generator = np.random.default_rng([client, block])
        yield generator.standard_normal(min(_BLOCK, count - start), dtype=np.float32)


def tensors(client: int, table: TensorTable) -> Tensors:
    """A client's model: one tensor, made while it is read."""
    return Tensors(table, lambda _: (block.data.cast("B") for block in values(client, table.elements)))


def is_reference(path: Path, table: TensorTable) -> bool:
    """Whether a file, its header included, is the float64 average in ascending client id."""
    with path.open("rb") as file:
        header = global_header(table)
        if file.read(len(header)) != header:
            return False
        for blocks in zip(*(values(c, table.elements) for c in range(CLIENTS)), strict=True):
            sums = np.zeros(len(blocks[0]), dtype=np.float64)
            for weight, block in zip(_COUNTS, blocks, strict=True):
                sums += float(weight) * block.astype(np.float64)
            if file.read(4 * len(sums)) != (sums / sum(_COUNTS)).astype("<f4").tobytes():
                return False
        return not file.read(1)


def one_round(aws: AwsClients, deployment: Deployment, mib: int, narration: Narration) -> tuple[str, bool]:
    """Run a round of `mib` MiB per client; returns its row, and whether the bytes are those of the reference."""
    table = TensorTable((TensorSpec("weight", "F32", (mib * 1024**2 // 4,)),))
    model, bucket = f"large-{mib}", aws.bucket(deployment.bucket)
    narration.say(f"{mib} MiB: {CLIENTS} clients submit ...")
    for client in range(CLIENTS):
        submit(bucket, model, f"client-{client}", tensors(client, table), _COUNTS[client])
    began = time.perf_counter()
    report = start_round(aws, deployment, RoundRequest(model, model, SHARDS, CLIENTS), narration).document
    round_s = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "global.safetensors"
        fetch(bucket, model, path)
        exact = is_reference(path, table)
    stats = [result["stats"] for result in report["shard_results"]]
    peaks = [s["peak_rss_mb"] for s in stats]
    row = (
        f"| {mib} | {round_s:.1f} | {sum(s['wall_s'] for s in stats):.1f} | {sum(s['cpu_s'] for s in stats):.1f} "
        f"| {min(peaks):.0f}-{max(peaks):.0f} | {sum(s['gets'] for s in stats)} | {sum(s['puts'] for s in stats)} "
        f"| {len(stats)} of {SHARDS} | {'exact' if exact else 'DIFFERENT'} |"
    )
    return row, exact


HEAD = """\
| MiB per client | round s | function s | CPU s | peak RSS MB, each function | GETs | PUTs | reported | bytes |
|---|---|---|---|---|---|---|---|---|"""


def deploy(running: emulator.Emulator, mib: int, narration: Narration) -> Deployment:
    """Deploy one lane for models of `mib` MiB in the emulator."""
    variables = {
        **function_zip.variables(function_zip.target_for("local", running.kind)),
        "aws_endpoint_url": running.url,
        "model_bytes": mib * 1024**2,
        "clients": CLIENTS,
        "shard_counts": [SHARDS],
        "memory_mb_override": MEMORY_MB,
    }
    narration.say(f"terraform apply: one lane of {SHARDS} shards, {MEMORY_MB} MB ...")
    with elapsed_time(narration, "terraform apply"):
        terraform.apply("local", variables, show=False)
    return load_deployment("local")


def main() -> int:
    """Deploy, run a round per size, print the table; returns 0 if all bytes are those of the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, action="append", help="MiB per client (repeatable; default: 64, 256, 1024)")
    sizes = parser.parse_args().mib or [64, 256, 1024]
    narration = StderrNarration()
    with tempfile.TemporaryDirectory(prefix="fedagg-bench-") as home:
        os.environ["FEDAGG_HOME"] = home
        os.environ.pop("AWS_ENDPOINT_URL", None)  # start a separate emulator
        try:
            deployment = deploy(emulator.start(), max(sizes), narration)
            aws = connect(deployment.region, deployment.endpoint_url)
            print(
                f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python "
                f"{platform.python_version()}; {CLIENTS} clients, {SHARDS} shards, functions of {MEMORY_MB} MB\n\n"
                f"{HEAD}",
                flush=True,
            )
            all_exact = True
            for mib in sizes:
                row, exact = one_round(aws, deployment, mib, narration)
                print(row, flush=True)
                all_exact = all_exact and exact
        finally:
            emulator.stop()
    return 0 if all_exact else 1


if __name__ == "__main__":
    sys.exit(main())
