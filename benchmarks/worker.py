"""What the averaging worker takes, beside the paper's function, in a box of Lambda's size.

    python -m benchmarks.worker                  the paper's VGG-16 shard: 20 clients, shard 1 of 16, 256 MB
    python -m benchmarks.worker --sweep          and: 128 MB; 4 to 1,000 clients; shards of 8 to 512 MB
    python -m benchmarks.worker --clients 64 --shard-mb 32 --memory 128 --repeats 5

Every case runs `--repeats` times, each time in a new process and a new box; the table has the medians. The averaged
bytes are compared with a reference that is computed apart. Exit status 1 where they differ. As root on Linux the box
limits CPU, memory and network; otherwise the narration on standard error says what it could not limit.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.box import NIC_MBIT
from benchmarks.run import Measured, measure
from benchmarks.workload import Workload

WORKER, BASELINE = "lambdas.shard_average", "benchmarks.baseline"
NAMES = {WORKER: "this worker", BASELINE: "paper's function"}


@dataclass(frozen=True)
class Case:
    """One row: a workload in a box, averaged by one handler."""

    workload: Workload
    memory_mb: int
    module: str = WORKER


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20, help="N (default: 20)")
    parser.add_argument("--shard-mb", type=float, help="bytes of a shard / 10**6 (default: VGG-16's shard 1 of 16)")
    parser.add_argument("--memory", type=int, default=256, help="the function's memory in MB (default: 256)")
    parser.add_argument("--network", type=int, default=NIC_MBIT, help=f"Mbit/s (default: {NIC_MBIT})")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every case (default: 3)")
    parser.add_argument("--sweep", action="store_true", help="the sizes and client counts of benchmarks/README.md")
    parser.add_argument("--skip-baseline", action="store_true", help="measure this worker only")
    args = parser.parse_args(argv)
    workload = Workload(clients=args.clients)
    if args.shard_mb:
        workload = Workload.of_shard_bytes(args.clients, int(args.shard_mb * 1e6))
    cases = [Case(workload, args.memory)]
    if not args.skip_baseline:
        cases.append(Case(workload, args.memory, BASELINE))
    if args.sweep:
        cases += sweep(args.memory)
    print(f"{machine()}; {args.network} Mbit/s; median of {args.repeats}\n")
    print(HEAD)
    rows = []
    for case in cases:
        runs = [
            measure(case.workload, case.module, memory_mb=case.memory_mb, nic_mbit=args.network)
            for _ in range(args.repeats)
        ]
        if case is cases[0]:
            for gap in runs[0].unlimited:
                print(f"Not a Lambda-sized box: {gap}.", file=sys.stderr)
        rows.append((case, runs))
        print(row(case, runs, args.network), flush=True)
    if len(cases) > 1 and cases[1].module == BASELINE:
        print("\n" + ratios(rows[0][1], rows[1][1]))
    return 0 if all(exact(case, run) for case, runs in rows for run in runs if case.module == WORKER) else 1


def sweep(memory_mb: int) -> list[Case]:
    """The cases behind "flat": clients at VGG-16's shard, shard sizes at 20 clients, and the smallest function."""
    return [
        Case(Workload(), 128),
        *(Case(Workload(clients=n), memory_mb) for n in (4, 64)),
        *(Case(Workload.of_shard_bytes(20, mb * 1_000_000), memory_mb) for mb in (8, 128, 512)),
        Case(Workload.of_shard_bytes(20, 512_000_000), 128),
        Case(Workload.of_shard_bytes(1000, 8_000_000), memory_mb),
    ]


HEAD = """\
| clients | shard MB | memory MB | handler | wall s | network alone s | CPU s | CPU s/GB | peak RSS MB | GETs | PUTs \
| open connections | bytes |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def row(case: Case, runs: Sequence[Measured], nic_mbit: int) -> str:
    """One line of the table."""
    cells = [
        f"{case.workload.clients:,}",
        f"{case.workload.shard_bytes / 1e6:.1f}",
        f"{case.memory_mb}",
        NAMES[case.module],
        f"{median(runs, 'wall_s'):.2f}",
        f"{network_alone_s(case.workload, nic_mbit):.2f}",
        f"{median(runs, 'cpu_s'):.2f}",
        f"{median(runs, 'cpu_s_per_gb'):.2f}",
        f"{max(run.rss_mb for run in runs):.1f}",
        f"{runs[0].gets:,}",
        f"{runs[0].puts}",
        f"{max(run.most_open for run in runs)}",
        ("exact" if all(exact(case, run) for run in runs) else "DIFFERENT") if case.module == WORKER else "float32",
    ]
    return "| " + " | ".join(cells) + " |"


def ratios(ours: Sequence[Measured], paper: Sequence[Measured]) -> str:
    """This worker's share of what the paper's function takes."""
    shares = {
        "CPU seconds per GB": median(ours, "cpu_s_per_gb") / median(paper, "cpu_s_per_gb"),
        "peak RSS": median(ours, "rss_mb") / median(paper, "rss_mb"),
        "wall time": median(ours, "wall_s") / median(paper, "wall_s"),
        "requests": (ours[0].gets + ours[0].puts) / (paper[0].gets + paper[0].puts),
    }
    return "This worker / the paper's function: " + ", ".join(f"{k} {v:.2f}" for k, v in shares.items())


def median(runs: Sequence[Measured], name: str) -> float:
    """The median of one figure."""
    return statistics.median(float(getattr(run, name)) for run in runs)


def network_alone_s(workload: Workload, nic_mbit: int) -> float:
    """Seconds that the averaged bytes take on the wire: TLS records of 16 KiB in frames of 1,448 bytes of data."""
    return workload.bytes_averaged * (1 + 22 / 16384) * (1514 / 1448) * 8 / (nic_mbit * 1e6)


def exact(case: Case, run: Measured) -> bool:
    """Whether the stored bytes are the reference's."""
    return run.stored_sha256 == reference_sha256(case.workload)


@cache
def reference_sha256(workload: Workload) -> str:
    """SHA-256 of the reference's shard."""
    digest = hashlib.sha256()
    for block in workload.reference():
        digest.update(block)
    return digest.hexdigest()


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    today = datetime.datetime.now(tz=datetime.timezone.utc).date()  # noqa: UP017 (Python 3.11 has both)
    python = platform.python_version()
    return f"{today}, {model}, Linux {platform.release().split('-')[0]}, Python {python}, numpy {np.__version__}"


if __name__ == "__main__":
    raise SystemExit(main())
