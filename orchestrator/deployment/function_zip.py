"""Builds the function zip: the package `lambdas` and numpy, for one Python and one CPU architecture, reproducibly.

Zig's C compiler, which pip downloads and which compiles for any processor, compiles `lambdas/averaging/fold.c`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.paths import ROOT

# AWS Lambda, "Lambda quotas": the largest zip that is uploaded directly.
MAX_ZIP_BYTES = 50 * 1000**2
# The earliest time stamp of the zip format, so that the same inputs give the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)
# The functions' Python on AWS, and the platform tags of wheels for Amazon Linux 2023 (glibc 2.34), best first.
_LAMBDA_PYTHON = (3, 13)
_MANYLINUX = {
    cpu_architecture: tuple(f"{tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux2014"))
    for cpu_architecture, machine in (("arm64", "aarch64"), ("x86_64", "x86_64"))
}
_FOLD_SOURCE = ROOT / "lambdas" / "averaging" / "fold.c"
_REQUIREMENTS = ROOT / "lambdas" / "requirements.txt"
_BUILD_REQUIREMENTS = ROOT / "lambdas" / "requirements-build.txt"
# Nothing is linked, so that the library runs beside any C library. The code is for the oldest processor of each CPU
# architecture: wider registers were not faster, since memory is the limit. fold.c says why contraction is off.
_COMPILE = ["-O3", "-ffp-contract=off", "-shared", "-nostdlib", "-s"]
# Parts of numpy that a function never imports.
_LEFT_OUT_DIRS = {"tests", "include", "pkgconfig", "__pycache__"}
_LEFT_OUT_SUFFIXES = {".pyi", ".h", ".a", ".pyc"}


@dataclass(frozen=True)
class Target:
    """What a zip is built for.

    Attributes:
        name: part of the file name: `aws`, `local` or `localstack`.
        python: major and minor version of the function's runtime.
        platforms: wheel platform tags, best first; empty for this machine's.
    """

    name: str
    python: tuple[int, int]
    cpu_architecture: str
    platforms: tuple[str, ...] = ()

    @property
    def runtime(self) -> str:
        """Lambda's name of the runtime: `python`, or the newest that the AWS provider of infra/versions.tf knows.

        Only an emulator on this machine has a newer Python, and it runs functions with that one, whatever the name is.
        """
        major, minor = min(self.python, _LAMBDA_PYTHON)
        return f"python{major}.{minor}"

    @property
    def path(self) -> Path:
        """Path of the zip."""
        return ROOT / "build" / f"lambda-{self.name}.zip"

    @property
    def on_linux(self) -> bool:
        """Whether the functions run on Linux; an emulator's may run as processes of another system."""
        return bool(self.platforms) or sys.platform == "linux"


def target_for(environment: str, emulator: str = "ministack") -> Target:
    """The Python and the machine on which an environment's functions run.

    On AWS, functions run with Lambda's Python on arm64. MiniStack runs them with its own Python, which is this one, and
    LocalStack with Lambda's Python on this machine's CPU architecture.

    Args:
        emulator: the kind of emulator, for the local environment (`orchestrator.emulators.emulator.KINDS`).
    """
    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
    if environment != "local":
        return Target("aws", _LAMBDA_PYTHON, "arm64", _MANYLINUX["arm64"])
    if emulator == "localstack":
        return Target("localstack", _LAMBDA_PYTHON, machine, _MANYLINUX[machine])
    return Target("local", sys.version_info[:2], machine)


def variables(target: Target) -> dict[str, str]:
    """Build the zip and return the Terraform variables that describe it.

    The path is relative to the directory of an environment: the same in every checkout, so that a plan from another one
    finds nothing to change.

    Raises:
        OrchestratorError: it cannot be built.
    """
    package_path = os.path.relpath(build(target), ROOT / "environments" / "any")
    return {"package_path": package_path, "runtime": target.runtime, "cpu_architecture": target.cpu_architecture}


def build(target: Target) -> Path:
    """Build the zip, unless the existing one was built from the same inputs; returns its path.

    Raises:
        OrchestratorError: wheels or the compiler cannot be downloaded, or the zip is too large for Lambda.
    """
    inputs = _inputs(target)
    record = target.path.with_suffix(".json")
    if target.path.exists() and record.exists():
        built = json.loads(record.read_text())
        if built.get("inputs") == inputs and built.get("sha256") == _sha256(target.path):
            return target.path
    target.path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.path.parent) as directory:
        _download(target, Path(directory))
        compiled = [compile_fold(target, Path(directory))] if target.on_linux else []
        partial = target.path.with_suffix(".partial")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
            for name, data in sorted(_contents(Path(directory), compiled)):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if ".so" in Path(name).suffixes else 0o644) << 16
                out.writestr(entry, data)
    if partial.stat().st_size > MAX_ZIP_BYTES:
        raise OrchestratorError(f"{partial} has {partial.stat().st_size} bytes, Lambda takes {MAX_ZIP_BYTES}.")
    partial.replace(target.path)
    record.write_text(json.dumps({"inputs": inputs, "sha256": _sha256(target.path)}))
    return target.path


def compile_fold(target: Target, directory: Path) -> Path:
    """Compile `lambdas/averaging/fold.c` for functions on Linux; returns the shared library's path.

    Args:
        directory: where the compiler and the shared library go.

    Raises:
        OrchestratorError: the compiler cannot be downloaded, or fails.
    """
    compiler = _fetch_compiler(directory)
    machine = "aarch64" if target.cpu_architecture == "arm64" else target.cpu_architecture
    path = directory / "libfold.so"
    command = [str(compiler), "cc", "-target", f"{machine}-linux-gnu", *_COMPILE, "-o", str(path), str(_FOLD_SOURCE)]
    # The user's environment variables do not change what is compiled, and no cache is left in the home directory.
    environ = {"PATH": os.defpath, "ZIG_GLOBAL_CACHE_DIR": str(directory), "ZIG_LOCAL_CACHE_DIR": str(directory)}
    _run(command, f"{_FOLD_SOURCE} could not be compiled", environ)
    return path


def _fetch_compiler(directory: Path) -> Path:
    """Download Zig, whose C compiler compiles for any processor, as a wheel (https://pypi.org/project/ziglang)."""
    failure = "pip could not get the compiler of lambdas/averaging/fold.c; PIP_INDEX_URL names an index that has it"
    _pip_download(directory / "compiler", _BUILD_REQUIREMENTS, [], failure)
    (wheel,) = (directory / "compiler").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory, [name for name in archive.namelist() if name.startswith("ziglang/")])
    compiler = directory / "ziglang" / "zig"
    compiler.chmod(0o755)
    return compiler


def _run(command: list[str], failure: str, environ: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if result.returncode != 0:
        raise OrchestratorError(f"{failure}:\n{result.stderr.strip()}")


def _sources() -> list[Path]:
    return sorted((ROOT / "lambdas").rglob("*.py"))


def _inputs(target: Target) -> str:
    digest = hashlib.sha256(repr((target, target.on_linux, zipfile.ZIP_DEFLATED)).encode())
    for path in [*_sources(), _FOLD_SOURCE, _REQUIREMENTS, _BUILD_REQUIREMENTS, Path(__file__)]:
        digest.update(os.path.relpath(path, ROOT).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(target: Target, directory: Path) -> None:
    options = []
    if target.platforms:
        version = f"{target.python[0]}{target.python[1]}"
        options = ["--implementation", "cp", "--python-version", version, "--abi", f"cp{version}"]
        for tag in target.platforms:
            options += ["--platform", tag]
    _pip_download(directory, _REQUIREMENTS, options, f"pip could not get the function's wheels for {target}")


def _pip_download(directory: Path, requirements: Path, options: list[str], failure: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(directory), "--requirement", str(requirements)]
    _run([*command, *options], failure)


def _contents(wheels: Path, compiled: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in _sources():
        yield str(path.relative_to(ROOT)), path.read_bytes()
    for path in compiled:
        yield f"lambdas/averaging/{path.name}", path.read_bytes()
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                path = Path(entry.filename)
                left_out = _LEFT_OUT_DIRS & set(path.parts) or path.suffix in _LEFT_OUT_SUFFIXES
                if not entry.is_dir() and not left_out:
                    yield entry.filename, archive.read(entry)
