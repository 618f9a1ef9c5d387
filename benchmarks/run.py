"""One measurement: starts the S3 server and runs a handler inside the box."""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.box import Box
from benchmarks.s3_server import Seen
from benchmarks.workload import BUCKET, ROUND, Workload, client_name
from orchestrator.deployment import function_zip
from orchestrator.paths import ROOT

PAPER_HANDLER = "benchmarks.paper_handler"


@dataclass(frozen=True)
class Measured:
    """What one invocation took.

    Attributes:
        cpu_s: user and system time of the invocation.
        init_cpu_s: user and system time of imports and client creation, before the invocation.
        rss_mb: peak resident memory, the interpreter and everything imported included.
        most_open: the largest number of connections that were open at once.
        stored_sha256: of what the handler stored, as the server received it.
        tls: version and cipher of the last connection.
        network_mbit: the network's rate, Mbit/s; None if it was not limited.
        unlimited: how the box differs from a function, as sentences.
    """

    wall_s: float
    cpu_s: float
    init_cpu_s: float
    rss_mb: float
    gets: int
    puts: int
    most_open: int
    bytes_averaged: int
    stored_sha256: str
    tls: str
    network_mbit: int | None
    unlimited: tuple[str, ...]

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds per 10**9 bytes averaged."""
        return self.cpu_s / self.bytes_averaged * 1e9


def measure(workload: Workload, module: str, memory_mb: int, nic_mbit: int, reader: str) -> Measured:
    """Run `module`'s handler once on `workload`, in a new process inside a new box."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedagg-bench-")))
        task = unpack(directory)
        box = stack.enter_context(Box(memory_mb, nic_mbit=nic_mbit))
        if not (task / "lambdas" / "averaging" / "libfold.so").exists():
            box.unlimited.append("the worker sums with numpy (the compiled loop is for Linux)")
        server = start_server(stack, box, workload, directory)
        assert server.stdin
        assert server.stdout
        endpoint = f"https://{box.address}:{json.loads(server.stdout.readline())['port']}"
        event = directory / "event.json"
        event.write_text(json.dumps(event_of(workload, module, memory_mb)))
        function = subprocess.run(
            box.function_command([sys.executable, "-P", "-m", "benchmarks.invoke", module, str(event)]),
            env={**function_environment(endpoint, directory, task), "BENCH_READER": reader},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if function.returncode != 0:
            raise SystemExit(f"{module} in {memory_mb} MB ended with status {function.returncode}.")
        server.stdin.write("\n")
        server.stdin.flush()
        seen = Seen(**json.loads(server.stdout.readline()))
    result = json.loads(function.stdout.splitlines()[-1])
    if result["answer"].get("batchItemFailures") or not seen.stored:
        raise SystemExit(f"{module} failed: {result['answer']} {seen.messages}")
    return Measured(
        **result["figures"],
        gets=seen.gets,
        puts=seen.puts,
        most_open=seen.most_open,
        bytes_averaged=workload.bytes_averaged,
        stored_sha256=next(iter(seen.stored.values())),
        tls=seen.tls,
        network_mbit=box.network_mbit,
        unlimited=tuple(box.unlimited),
    )


def start_server(stack: ExitStack, box: Box, workload: Workload, directory: Path) -> subprocess.Popen[str]:
    """Start the S3 server on its side of the box; it ends with `stack`, and its first line of output has its port."""
    make_certificate(directory, box.address)
    command = [sys.executable, "-m", "benchmarks.s3_server", "--host", box.address]
    command += ["--directory", str(directory), "--workload", json.dumps(asdict(workload))]
    server = stack.enter_context(
        subprocess.Popen(
            box.server_command(command),
            env=server_environment(directory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    assert server.stdin
    stack.callback(server.stdin.close)
    return server


def event_of(workload: Workload, module: str, memory_mb: int) -> dict[str, Any]:
    """The event that Lambda would pass to the handler, and the memory size for its context."""
    if module == PAPER_HANDLER:
        names = range(workload.clients)
        return {
            "memory_mb": memory_mb,
            "keys": [f"paper/{client_name(c)}/{workload.shard}.npy" for c in names],
            "weights": [workload.examples(c) for c in names],
            "output": f"rounds/{ROUND}/shard-{workload.shard}.npy",
        }
    record = {"messageId": "m-1", "body": workload.job(), "attributes": {"ApproximateReceiveCount": "1"}}
    return {"memory_mb": memory_mb, "Records": [record]}


def unpack(directory: Path) -> Path:
    """Unpack this project's package from the function zip, with its compiled loop; returns the directory."""
    task = directory / "task"
    with zipfile.ZipFile(function_zip.build(function_zip.target_for("local"))) as archive:
        archive.extractall(task, [name for name in archive.namelist() if name.startswith("lambdas/")])
    compileall.compile_dir(task, quiet=1)
    return task


def function_environment(endpoint: str, directory: Path, task: Path) -> dict[str, str]:
    """Environment variables of the function: those of Lambda, with the server in place of AWS."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{task}{os.pathsep}{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CA_BUNDLE": str(directory / "ca.pem"),
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "_HANDLER": "lambdas.shard_average.handler",
        "FL_BUCKET": BUCKET,
        "FL_RESULT_QUEUE_URL": f"{endpoint}/000000000000/results",
        "FL_LOG_LEVEL": "WARNING",
    }


def server_environment(directory: Path) -> dict[str, str]:
    """The server's environment, in which OpenSSL chooses the TLS 1.3 cipher that S3 chooses.

    Published access logs of S3 show TLS_AES_128_GCM_SHA256, also for aws-cli and Java. OpenSSL's own first choice has
    256 bits, and Python has no setting for it before 3.15.
    """
    config = directory / "openssl.cnf"
    config.write_text(
        "openssl_conf = main\n[main]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n"
        "[tls]\nCiphersuites = TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384\n"
    )
    return {**os.environ, "OPENSSL_CONF": str(config)}


def make_certificate(directory: Path, address: str) -> None:
    """A self-signed certificate for `address`: server.pem with its key, ca.pem without."""
    key, certificate = directory / "key.pem", directory / "ca.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=s3.bench"]
    command += ["-addext", f"subjectAltName=IP:{address}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    (directory / "server.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
