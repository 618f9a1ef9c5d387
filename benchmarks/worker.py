"""Measures this project's averaging worker, and the paper's handler, in a box with the limits of a Lambda function.

    python -m benchmarks.worker                  the paper's VGG-16 shard: 20 clients, shard 1 of 16, 256 MB
    python -m benchmarks.worker --sweep          adds 128 MB; 4 to 1,000 clients; shards of 8 to 512 MB
    python -m benchmarks.worker --readers        adds a minimal streaming handler (`benchmarks.plain_stream`), and this
                                                 worker with other readers (`benchmarks.other_readers`)
    python -m benchmarks.worker --paper          adds functions of the rounds that the paper measured
    python -m benchmarks.worker --sleepy         on a machine whose cores sleep while the function is stopped
    python -m benchmarks.worker --clients 64 --shard-mb 32 --memory 128 --repeats 5

Every case runs `--repeats` times (those of --sweep and --paper once), each time in a new process and a new box. The
table has medians, the largest peak memory, and also the least CPU time per GB, because other machines on the same host
can only add to it. Wall and CPU time are those of the invocation; start-up (imports and clients, Lambda's INIT) has its
own column. The averaged bytes are compared with a reference that is computed separately; the exit status is 1 if they
differ. As root on Linux the box limits CPU, memory and network; otherwise messages on standard error name what is not
limited. A process of the lowest priority keeps the cores awake in all cases (`benchmarks.box.awake`).
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.box import NIC_MBIT, awake
from benchmarks.run import PAPER_HANDLER, Measured, measure
from benchmarks.workload import RESNET18_PARAMETERS, Workload

WORKER = "lambdas.shard_average"
PLAIN_STREAM, OTHER_READER = "benchmarks.plain_stream", "benchmarks.other_readers"
READERS = ("boto3", "urllib3", "http.client")


@dataclass(frozen=True)
class Case:
    """One row: a workload in a box, averaged by one handler."""

    workload: Workload
    memory_mb: int
    module: str = WORKER
    reader: str = ""

    @property
    def name(self) -> str:
        """The handler's name in the table."""
        return {
            WORKER: "this worker",
            PAPER_HANDLER: "paper's function",
            PLAIN_STREAM: "plain stream",
            OTHER_READER: f"reading by {self.reader}",
        }[self.module]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20, help="N (default: 20)")
    parser.add_argument("--shard-mb", type=float, help="bytes of a shard / 10**6 (default: VGG-16's shard 1 of 16)")
    parser.add_argument("--memory", type=int, default=256, help="the function's memory in MB (default: 256)")
    parser.add_argument("--network", type=int, default=NIC_MBIT, help=f"Mbit/s (default: {NIC_MBIT})")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every case (default: 3)")
    parser.add_argument("--sweep", action="store_true", help="the sizes and client counts of benchmarks/README.md")
    parser.add_argument("--readers", action="store_true", help="a minimal streaming handler, and other readers")
    parser.add_argument("--paper", action="store_true", help="functions of the paper's rounds")
    parser.add_argument("--sleepy", action="store_true", help="let the cores sleep while the function is stopped")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    parser.add_argument("--skip-baseline", action="store_true", help="do not measure the paper's handler")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the box, which removes its namespaces and groups
    cases = chosen_cases(args)
    cores = "left to sleep" if args.sleepy else "kept awake"
    measured: dict[Case, list[Measured]] = {}
    once = [*(sweep(args.memory) if args.sweep else []), *(paper_functions(args.memory) if args.paper else [])]
    with nullcontext() if args.sleepy else awake():
        for repeats, group in ((args.repeats, cases), (1, once)):
            for _ in range(repeats):  # in turn, so that other work on the machine affects all cases alike
                for case in group:
                    run = measure(case.workload, case.module, case.memory_mb, args.network, case.reader)
                    if not measured:
                        print_head(run, cores)
                    measured.setdefault(case, []).append(run)
            for case in group:
                print(row(case, measured[case]), flush=True)
    for case in cases[1:]:
        if case.module in (PAPER_HANDLER, PLAIN_STREAM):
            print(f"\nThis worker / the {case.name}: {ratios(measured[cases[0]], measured[case])}")
    if args.json:
        args.json.write_text(json.dumps(document(measured, cores), indent=1) + "\n")
    checked = [(case, run) for case, runs in measured.items() for run in runs if case.module != PAPER_HANDLER]
    return 0 if all(exact(case, run) for case, run in checked) else 1


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    """This worker, and the handlers that it is compared with."""
    workload = Workload(clients=args.clients)
    if args.shard_mb:
        workload = Workload.of_shard_bytes(args.clients, int(args.shard_mb * 1e6))
    cases = [Case(workload, args.memory)]
    if not args.skip_baseline:
        cases.append(Case(workload, args.memory, PAPER_HANDLER))
    if args.readers:
        cases.append(Case(workload, args.memory, PLAIN_STREAM))
        cases += [Case(workload, args.memory, OTHER_READER, reader) for reader in READERS]
    return cases


def print_head(run: Measured, cores: str) -> None:
    """Print the machine and the head of the table, and what is not limited."""
    rate = f"{run.network_mbit} Mbit/s" if run.network_mbit else "network not limited"
    print(f"{machine()}, cores {cores}; {rate}; medians\n\n{HEAD}")
    print(f"S3's side of TLS: {run.tls}.", file=sys.stderr)
    for gap in run.unlimited:
        print(f"Not a Lambda-sized box: {gap}.", file=sys.stderr)


def sweep(memory_mb: int) -> list[Case]:
    """Numbers of clients with VGG-16's shard, sizes of shards with 20 clients, and the smallest function."""
    return [
        Case(Workload(), 128),
        *(Case(Workload(clients=n), memory_mb) for n in (4, 64)),
        *(Case(Workload.of_shard_bytes(20, mb * 1_000_000), memory_mb) for mb in (8, 128, 512)),
        Case(Workload.of_shard_bytes(20, 512_000_000), 128),
        Case(Workload.of_shard_bytes(1000, 8_000_000), memory_mb),
    ]


def paper_functions(memory_mb: int) -> list[Case]:
    """First-level functions of the paper's rounds with the paper's memory, and the same shards for this worker."""
    resnet18, vgg16 = Workload(elements=RESNET18_PARAMETERS, shards=4), Workload(shards=4)
    return [
        Case(resnet18, 472, PAPER_HANDLER),
        Case(resnet18, memory_mb),
        Case(vgg16, 835, PAPER_HANDLER),
        Case(vgg16, memory_mb),
        Case(Workload(), 3008, PAPER_HANDLER),
    ]


HEAD = """\
| clients | shard MB | memory MB | handler | runs | wall s | network alone s | CPU s | CPU s/GB | least | \
start-up CPU s | peak RSS MB | GETs | PUTs | connections | bytes |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def row(case: Case, runs: Sequence[Measured]) -> str:
    """One line of the table."""
    f = figures(case, runs)
    alone = "-" if f["network_alone_s"] is None else f"{f['network_alone_s']:.2f}"
    cells = [
        f"{f['clients']:,}", f"{f['shard_mb']:.1f}", f"{f['memory_mb']}", f"{f['handler']}", f"{f['runs']}",
        f"{f['wall_s']:.2f}", alone, f"{f['cpu_s']:.2f}", f"{f['cpu_s_per_gb']:.2f}",
        f"{f['least_cpu_s_per_gb']:.2f}", f"{f['start_up_cpu_s']:.2f}", f"{f['peak_rss_mb']:.1f}",
        f"{f['gets']:,}", f"{f['puts']}", f"{f['connections']:,}", f"{f['bytes']}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def figures(case: Case, runs: Sequence[Measured]) -> dict[str, Any]:
    """What one case took: medians, the largest peak memory, the most connections open at once."""
    same = "exact" if all(exact(case, run) for run in runs) else "DIFFERENT"
    return {
        "handler": case.name,
        "clients": case.workload.clients,
        "model_bytes": case.workload.elements * 4,
        "shards": case.workload.shards,
        "shard_mb": round(case.workload.shard_bytes / 1e6, 3),
        "memory_mb": case.memory_mb,
        "runs": len(runs),
        **{name: round(median(runs, name), 3) for name in ("wall_s", "cpu_s", "cpu_s_per_gb")},
        "least_cpu_s_per_gb": round(min(run.cpu_s_per_gb for run in runs), 3),
        "start_up_cpu_s": round(median(runs, "init_cpu_s"), 3),
        "network_alone_s": round(network_alone_s(case.workload, rate), 3) if (rate := runs[0].network_mbit) else None,
        "peak_rss_mb": round(max(run.rss_mb for run in runs), 1),
        "gets": runs[0].gets,
        "puts": runs[0].puts,
        "connections": max(run.most_open for run in runs),
        "bytes": same if case.module != PAPER_HANDLER else "float32",
    }


def document(measured: Mapping[Case, Sequence[Measured]], cores: str) -> dict[str, Any]:
    """All figures as JSON. docs/reproduction.md is written from them."""
    rows = [figures(case, runs) for case, runs in measured.items()]
    unlimited = sorted({gap for runs in measured.values() for run in runs for gap in run.unlimited})
    tls = ", ".join(sorted({run.tls for runs in measured.values() for run in runs}))
    return {
        "machine": f"{machine()}, cores {cores}",
        "network_mbit": next(iter(measured.values()))[0].network_mbit,
        "tls": tls,
        "not_limited": unlimited,
        "rows": rows,
    }


def ratios(ours: Sequence[Measured], other: Sequence[Measured]) -> str:
    """The ratios of this worker's figures to another handler's."""
    shares = {
        "CPU seconds per GB": median(ours, "cpu_s_per_gb") / median(other, "cpu_s_per_gb"),
        "the least of them": min(run.cpu_s_per_gb for run in ours) / min(run.cpu_s_per_gb for run in other),
        "peak RSS": median(ours, "rss_mb") / median(other, "rss_mb"),
        "wall time": median(ours, "wall_s") / median(other, "wall_s"),
        "requests": (ours[0].gets + ours[0].puts) / (other[0].gets + other[0].puts),
    }
    return ", ".join(f"{k} {v:.2f}" for k, v in shares.items())


def median(runs: Sequence[Measured], name: str) -> float:
    """The median of one figure."""
    return statistics.median(float(getattr(run, name)) for run in runs)


def network_alone_s(workload: Workload, nic_mbit: int) -> float:
    """Seconds that the averaged bytes take on the wire: TLS records of 16 KiB in frames of 1,448 bytes of data."""
    return workload.bytes_averaged * (1 + 22 / 16384) * (1514 / 1448) * 8 / (nic_mbit * 1e6)


def exact(case: Case, run: Measured) -> bool:
    """Whether the stored bytes are those of the reference."""
    return run.stored_sha256 == reference_sha256(case.workload)


@cache
def reference_sha256(workload: Workload) -> str:
    """SHA-256 of the shard as the reference computes it."""
    digest = hashlib.sha256()
    for block in workload.reference():
        digest.update(block)
    return digest.hexdigest()


def machine() -> str:
    """The date and the machine."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    today = datetime.datetime.now(tz=datetime.UTC).date()
    python = platform.python_version()
    return f"{today}, {model}, Linux {platform.release().split('-')[0]}, Python {python}, numpy {np.__version__}"


if __name__ == "__main__":
    raise SystemExit(main())
