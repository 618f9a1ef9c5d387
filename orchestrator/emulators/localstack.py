"""LocalStack 4.14.0, as a container where there is a Docker engine, else from PyPI as a process of this machine.

What it needs is in localstack_runtime: the compose file that pins the image; the pins of the PyPI packages; and the
plug-in that runs functions without Docker. The packages get a virtual environment of their own, `.venv-localstack`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.emulators.daemon import Launch, without_aws
from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.paths import ROOT
from orchestrator.progress import Narration

VERSION = "4.14.0"
# The functions' Python, here as on AWS. (LocalStack 4.14.0's package admits 3.10, its syntax needs 3.12.)
PYTHON = (3, 13)
FILES = Path(__file__).with_name("localstack_runtime")
VENV = ROOT / ".venv-localstack"

_PULL_S = 1800


def prepare(port: int, home: Path, narration: Narration) -> Launch:
    """Get LocalStack (pull its image, or install it) and say how to start it on `port`.

    Raises:
        BadInput: there is neither a Docker engine nor a Python that can run it.
        OrchestratorError: it could not be pulled or installed.
    """
    if has_docker():
        return _container(port, home, narration)
    install(narration)
    return _process(port, home)


# --- with Docker ---------------------------------------------------------------------------------------------------


def has_docker() -> bool:
    """Whether a Docker engine answers and `docker compose` is there."""
    try:
        for command in (["docker", "info"], ["docker", "compose", "version"]):
            if subprocess.run(command, capture_output=True, check=False, timeout=30).returncode != 0:
                return False
    except (OSError, subprocess.TimeoutExpired):
        return False
    return True


def _compose(home: Path) -> list[str]:
    project = f"fedagg-localstack-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"
    return ["docker", "compose", "--project-name", project, "--file", str(FILES / "compose.yml")]


def _container(port: int, home: Path, narration: Narration) -> Launch:
    compose = _compose(home)
    environ = {**os.environ, "LOCALSTACK_PORT": str(port)}
    narration.say(f"Pulling the image of LocalStack {VERSION} where it is not there yet ...")
    pulled = subprocess.run(
        [*compose, "pull", "--quiet"], env=environ, capture_output=True, text=True, check=False, timeout=_PULL_S
    )
    if pulled.returncode != 0:
        raise OrchestratorError(f"Docker could not get LocalStack {VERSION}:\n{pulled.stderr.strip()}")
    return Launch([*compose, "up", "--force-recreate"], environ, cleanup=[*compose, "down", "--volumes"])


# --- without -------------------------------------------------------------------------------------------------------


def install(narration: Narration) -> None:
    """LocalStack and the plug-in in their own virtual environment, unless what is there is what the pins say.

    Raises:
        BadInput: there is no Python of the right release, or this is not Linux.
        OrchestratorError: pip failed.
    """
    stamp = VENV / "installed"
    wanted = _inputs()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    python = find_python()
    if python is None or not sys.platform.startswith("linux"):
        raise BadInput(
            f"LocalStack {VERSION} runs in a container, and no Docker engine answers here; or without Docker on Linux "
            f"under Python {PYTHON[0]}.{PYTHON[1]}, "
            + ("which this is not. " if python else "which was not found (LOCALSTACK_PYTHON names one). ")
            + "Start Docker or install that Python, set AWS_ENDPOINT_URL to a LocalStack that is running, or leave "
            "EMULATOR unset for the emulator that needs neither."
        )
    narration.say(f"Installing LocalStack {VERSION} into {VENV.name}, once: it takes a minute or two ...")
    with tempfile.TemporaryDirectory(prefix="localstack-") as directory:
        # A copy, because building leaves files beside the sources.
        plugin = shutil.copytree(FILES, Path(directory) / "plugin")
        # Compiling what is never imported would take most of the time.
        pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in (
            [str(python), "-m", "venv", "--clear", str(VENV)],
            [*pip, "--no-compile", "--requirement", str(FILES / "requirements.txt"), str(plugin)],
        ):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise OrchestratorError(f"LocalStack {VERSION} could not be installed:\n{result.stderr.strip()}")
    stamp.write_text(wanted)


def find_python() -> Path | None:
    """A Python of the release that LocalStack runs under: LOCALSTACK_PYTHON, on PATH, or one that pyenv keeps."""
    for candidate in _pythons():
        try:
            version = subprocess.run(
                [candidate, "-c", "import sys; print(sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            continue
        if version.stdout.strip() == str(PYTHON):
            return Path(candidate)
    return None


def _pythons() -> Iterator[str]:
    named = os.environ.get("LOCALSTACK_PYTHON")
    if named:
        yield named
        return
    release = f"{PYTHON[0]}.{PYTHON[1]}"
    yield sys.executable
    yield f"python{release}"
    versions = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    yield from (str(path) for path in sorted(versions.glob(f"{release}*/bin/python"), reverse=True))


def _inputs() -> str:
    digest = hashlib.sha256(repr(PYTHON).encode())
    for name in ("requirements.txt", "pyproject.toml", "fedagg_localstack.py"):
        digest.update((FILES / name).read_bytes() + b"\0")
    return digest.hexdigest()


def _process(port: int, home: Path) -> Launch:
    own = home / "localstack"
    shutil.rmtree(own, ignore_errors=True)
    for name in ("tmp", "cache"):
        (own / name).mkdir(parents=True)
    environ = without_aws(os.environ)
    environ.pop("PYTHONPATH", None)
    return Launch(
        [str(VENV / "bin" / "python"), "-m", "localstack.runtime.main"],
        {
            **environ,
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            # Its own server listens on every interface, whatever GATEWAY_LISTEN says.
            "GATEWAY_SERVER": "fedagg-loopback",
            # Its own names for this machine, *.localhost.localstack.cloud, need a name server on the Internet.
            "LOCALSTACK_HOST": f"127.0.0.1:{port}",
            # http://host:port/account/name: Terraform's provider refuses the form `path`.
            "SQS_ENDPOINT_STRATEGY": "off",
            "DNS_ADDRESS": "0",
            # Nothing is asked of the Internet, and nobody is told.
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DISABLE_EVENTS": "1",
            "LAMBDA_RUNTIME_EXECUTOR": "fedagg-process",
            # An idle queue is looked at less and less often otherwise, up to every 10 s.
            "LAMBDA_EVENT_SOURCE_MAPPING_POLL_INTERVAL_SEC": "0.1",
            "LAMBDA_EVENT_SOURCE_MAPPING_MAX_BACKOFF_ON_EMPTY_POLL_SEC": "1",
            "TMPDIR": str(own / "tmp"),
            "XDG_CACHE_HOME": str(own / "cache"),
            "FILESYSTEM_ROOT": str(own / "root"),
            "CONFIG_DIR": str(own / "config"),
        },
    )
