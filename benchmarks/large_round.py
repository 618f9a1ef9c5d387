"""A large round for real: 4 clients x 1 GiB over 16 shards, through queue and functions of 256 MB, on the emulator.

    python -m benchmarks.large_round                     64, 256 and 1,024 MiB
    python -m benchmarks.large_round --mib 64 --mib 128

Terraform deploys the lane, the functions average, and the published file is compared, byte by byte, with a reference
that is computed apart. Times are those of an emulator on this machine; bytes, memory and requests carry over to AWS.
Needs about 8 times the largest update in memory (the emulator's S3 is there) and twice that in /tmp.
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
from lambdas.storage.bucket import Bucket
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


def values(client: int, count: int) -> Iterator[np.ndarray]:  # type: ignore[type-arg]
    """A client's weights, float32, block by block: the same every time they are asked for."""
    for block, start in enumerate(range(0, count, _BLOCK)):
        generator = np.random.default_rng([client, block])
        yield generator.standard_normal(min(_BLOCK, count - start), dtype=np.float32)


def tensors(client: int, table: TensorTable) -> Tensors:
    """A client's model: one tensor, made while it is read."""
    return Tensors(table, lambda _: (block.data.cast("B") for block in values(client, table.elements)))


def is_reference(path: Path, table: TensorTable) -> bool:
    """Whether a file is the float64 average in ascending client id, header included."""
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
    """Run a round of `mib` MiB per client; its row of the table, and whether the bytes are the reference's."""
    table = TensorTable((TensorSpec("weight", "F32", (mib * 1024**2 // 4,)),))
    model = f"large-{mib}"
    narration.say(f"{mib} MiB: {CLIENTS} clients submit ...")
    for client in range(CLIENTS):
        submit(
            Bucket(aws.s3, deployment.bucket), model, f"client-{client}", tensors(client, table), _COUNTS[client]
        )  # fmt: skip
    began = time.perf_counter()
    report = start_round(aws, deployment, RoundRequest(model, model, SHARDS, CLIENTS), narration).document
    round_s = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "global.safetensors"
        fetch(Bucket(aws.s3, deployment.bucket), model, path)
        exact = is_reference(path, table)
    stats = [result["stats"] for result in report["shard_results"]]
    peaks = [s["peak_rss_mb"] for s in stats]
    row = (
        f"| {mib} | {round_s:.1f} | {sum(s['wall_s'] for s in stats):.1f} | {sum(s['cpu_s'] for s in stats):.1f} "
        f"| {min(peaks):.0f}-{max(peaks):.0f} | {sum(s['gets'] for s in stats)} | {sum(s['puts'] for s in stats)} "
        f"| {len(stats)} of {SHARDS} | {'exact' if exact else 'DIFFERENT'} |"
    )
    return row, exact


def main() -> int:
    """Deploy, run a round per size, print the table; 0 if all bytes are the reference's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, action="append", help="MiB per client (repeatable; default: 64, 256, 1024)")
    sizes = parser.parse_args().mib or [64, 256, 1024]
    narration = StderrNarration()
    with tempfile.TemporaryDirectory(prefix="fedagg-bench-") as home:
        os.environ["FEDAGG_HOME"] = home
        os.environ.pop("AWS_ENDPOINT_URL", None)  # an emulator of its own
        try:
            running = emulator.start()
            variables = {
                **function_zip.variables(function_zip.target_for("local", running.kind)),
                "aws_endpoint_url": running.url,
                "model_bytes": max(sizes) * 1024**2,
                "clients": CLIENTS,
                "shard_counts": [SHARDS],
                "memory_mb_override": MEMORY_MB,
            }
            narration.say(f"terraform apply: one lane of {SHARDS} shards, {MEMORY_MB} MB ...")
            with elapsed_time(narration, "terraform apply"):
                terraform.apply("local", variables, show=False)
            deployment = load_deployment("local")
            aws = connect(deployment.region, deployment.endpoint_url)
            print(
                f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python "
                f"{platform.python_version()}; {CLIENTS} clients, {SHARDS} shards, functions of {MEMORY_MB} MB\n\n"
                "| MiB per client | round s | function s | CPU s | peak RSS MB, each function | GETs | PUTs | reported "
                "| bytes |\n|---|---|---|---|---|---|---|---|---|",
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
