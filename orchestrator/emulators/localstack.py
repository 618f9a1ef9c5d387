"""LocalStack 4.14.0: a container if a Docker engine answers, else a process from PyPI packages.

localstack_runtime has the compose file that pins the image, the versions of the PyPI packages, and the plug-in that
runs functions without Docker. The packages are installed in a virtual environment of their own, `.venv-localstack`.
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
# The Python release of the functions, here and on AWS. LocalStack's package allows 3.10, but its syntax needs 3.12.
PYTHON = (3, 13)
FILES = Path(__file__).with_name("localstack_runtime")
VENV = ROOT / ".venv-localstack"
_PULL_S = 1800


def prepare(port: int, home: Path, narration: Narration) -> Launch:
    """Pull LocalStack's image, or install its packages; returns how to start it on `port`.

    Raises:
        BadInput: neither a Docker engine nor the required Python was found.
        OrchestratorError: pulling or installing failed.
    """
    if has_docker():
        return _container(port, home, narration)
    install(narration)
    return _process(port, home)


def has_docker() -> bool:
    """Whether a Docker engine answers and `docker compose` is installed."""
    try:
        for command in (["docker", "info"], ["docker", "compose", "version"]):
            if subprocess.run(command, capture_output=True, check=False, timeout=30).returncode != 0:
                return False
    except (OSError, subprocess.TimeoutExpired):
        return False
    return True


def _container(port: int, home: Path, narration: Narration) -> Launch:
    project = f"fedagg-localstack-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"
    compose = ["docker", "compose", "--project-name", project, "--file", str(FILES / "compose.yml")]
    environ = {**os.environ, "LOCALSTACK_PORT": str(port)}
    narration.say(f"Pulling the image of LocalStack {VERSION} if it is not here yet ...")
    pulled = subprocess.run(
        [*compose, "pull", "--quiet"], env=environ, capture_output=True, text=True, check=False, timeout=_PULL_S
    )
    if pulled.returncode != 0:
        raise OrchestratorError(f"Docker could not pull LocalStack {VERSION}:\n{pulled.stderr.strip()}")
    return Launch([*compose, "up", "--force-recreate"], environ, cleanup=[*compose, "down", "--volumes"])


def install(narration: Narration) -> None:
    """Install LocalStack and the plug-in in their virtual environment, unless it has the pinned versions already.

    Raises:
        BadInput: no Python of the required release was found, or this machine does not run Linux.
        OrchestratorError: pip failed.
    """
    stamp = VENV / "installed"
    wanted = _inputs()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    python = find_python()
    if python is None or not sys.platform.startswith("linux"):
        raise BadInput(
            f"LocalStack {VERSION} runs in a container, or without Docker on Linux under Python "
            f"{PYTHON[0]}.{PYTHON[1]}. No Docker engine answers here, and "
            + ("this is not Linux. " if python else "that Python was not found (LOCALSTACK_PYTHON names one). ")
            + "Start Docker or install that Python, set AWS_ENDPOINT_URL to a LocalStack that is running, or leave "
            "EMULATOR unset to use MiniStack, which needs neither."
        )
    narration.say(f"Installing LocalStack {VERSION} into {VENV.name}. This happens once and takes a minute or two ...")
    with tempfile.TemporaryDirectory(prefix="localstack-") as directory:
        # pip leaves files beside the sources that it builds, so it builds a copy.
        plugin = shutil.copytree(FILES, Path(directory) / "plugin")
        # Without --no-compile, most of the time would be spent on modules that are never imported.
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
    """A Python of the required release: LOCALSTACK_PYTHON, else this one, one on PATH, or one of pyenv."""
    for candidate in _pythons():
        try:
            command = [candidate, "-c", "import sys; print(sys.version_info[:2])"]
            version = subprocess.run(command, capture_output=True, text=True, check=False)
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
            # LocalStack's default server ignores the address in GATEWAY_LISTEN and listens on every interface.
            "GATEWAY_SERVER": "fedagg-loopback",
            # The default host name, *.localhost.localstack.cloud, needs a name server on the Internet.
            "LOCALSTACK_HOST": f"127.0.0.1:{port}",
            # http://host:port/account/name: Terraform's provider does not accept the form `path`.
            "SQS_ENDPOINT_STRATEGY": "off",
            "DNS_ADDRESS": "0",
            # No requests to the Internet, and no usage statistics.
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DISABLE_EVENTS": "1",
            "LAMBDA_RUNTIME_EXECUTOR": "fedagg-process",
            # By default, an idle queue is polled less and less often, down to every 10 s.
            "LAMBDA_EVENT_SOURCE_MAPPING_POLL_INTERVAL_SEC": "0.1",
            "LAMBDA_EVENT_SOURCE_MAPPING_MAX_BACKOFF_ON_EMPTY_POLL_SEC": "1",
            "TMPDIR": str(own / "tmp"),
            "XDG_CACHE_HOME": str(own / "cache"),
            "FILESYSTEM_ROOT": str(own / "root"),
            "CONFIG_DIR": str(own / "config"),
        },
    )
