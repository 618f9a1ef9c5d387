"""The AWS of this machine: one switch, one interface, whichever emulator it is.

`EMULATOR=ministack` (default) starts MiniStack, `EMULATOR=localstack` starts LocalStack 4.14.0, and `AWS_ENDPOINT_URL`
names one that is already running, which is used as it is and never stopped.

An emulator that was started here belongs to one home directory (`terraform.state_home()`), which holds its process id,
its log and the Terraform state of what is deployed in it: it keeps everything in memory, so they live and die together.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.emulators import localstack, ministack
from orchestrator.emulators.daemon import command_of, end, free_port, is_free, tail
from orchestrator.errors import BadInput, OrchestratorError
from orchestrator.paths import state_home
from orchestrator.progress import Narration

KINDS = ("ministack", "localstack")
DEFAULT_PORT = 4566
_START_TIMEOUT_S = 120
_HEALTH = "/_localstack/health"  # MiniStack answers there, too


@dataclass(frozen=True)
class Emulator:
    """A running emulator.

    Attributes:
        kind: `ministack` or `localstack`.
        pid, log: None where it was not started here.
    """

    kind: str
    url: str
    pid: int | None = None
    log: str | None = None


def chosen(environ: Mapping[str, str] = os.environ) -> str:
    """The kind that `EMULATOR` names.

    Raises:
        BadInput: it names none.
    """
    kind = environ.get("EMULATOR") or KINDS[0]
    if kind not in KINDS:
        raise BadInput(f"EMULATOR={kind}: expected {' or '.join(KINDS)}.")
    return kind


def running() -> Emulator | None:
    """The emulator that `AWS_ENDPOINT_URL` names, else this home's; None where it does not answer."""
    url = os.environ.get("AWS_ENDPOINT_URL")
    if url:
        return _elsewhere(url.rstrip("/"))
    record = _read_record()
    return record[0] if record and _is_ours(record[0]) and _answers(record[0].url + _HEALTH) else None


def require() -> Emulator:
    """The emulator that `running` finds.

    Raises:
        BadInput: there is none.
    """
    found, url = running(), os.environ.get("AWS_ENDPOINT_URL")
    if found is None and url:
        raise BadInput(f"AWS_ENDPOINT_URL={url} does not answer. Unset the variable to start an emulator here.")
    if found is None:
        raise BadInput(
            "No emulator is running. Start one with `orchestrator emulator start`, or set AWS_ENDPOINT_URL to one that "
            "runs elsewhere."
        )
    return found


def start(port: int | None = None, narration: Narration | None = None) -> Emulator:
    """Start an emulator, on `port` or 4566, or a free port where that is taken. A running one is returned as it is.

    Raises:
        BadInput: the port that was asked for is taken, another kind runs here, or what it needs is not installed.
        OrchestratorError: it does not come up; names its log.
    """
    kind = chosen()
    if os.environ.get("AWS_ENDPOINT_URL"):
        return require()
    existing = running()
    if existing is not None:
        if existing.kind != kind:
            raise BadInput(f"Here runs {existing.kind}. Stop it (`orchestrator emulator stop`) before starting {kind}.")
        return existing
    if port is not None and not is_free(port):
        raise BadInput(f"Port {port} is taken. Choose another one, or none to let the system choose.")
    port = port or (DEFAULT_PORT if is_free(DEFAULT_PORT) else free_port())
    stop()
    home = state_home()
    _forget(home)  # what is left of one that died, even of its record
    home.mkdir(parents=True, exist_ok=True)
    if kind == "localstack":
        launch = localstack.prepare(port, home, narration or Narration())
    else:
        launch = ministack.prepare(port)
    log = home / "emulator.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            launch.command,
            env={**launch.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for the command, which stops the emulator in order
        )
    emulator = Emulator(kind, f"http://127.0.0.1:{port}", process.pid, str(log))
    _record().write_text(json.dumps({**asdict(emulator), "cleanup": launch.cleanup}))
    deadline = time.monotonic() + _START_TIMEOUT_S
    try:
        # Healthy twice, with a pause: where somebody else took the port first, that one answers while ours gives up.
        healthy = 0
        while healthy < 2:
            if process.poll() is not None or time.monotonic() > deadline:
                raise OrchestratorError(f"The emulator did not come up; its log {log} ends with:\n{tail(log)}")
            time.sleep(0.2)
            healthy = healthy + 1 if _answers(emulator.url + _HEALTH) else 0
    except BaseException:
        end(process.pid)
        stop()
        raise
    return emulator


def stop() -> bool:
    """Stop the emulator that was started in this home and forget what was deployed in it; whether one was running."""
    record = _read_record()
    if record is None:
        return False
    emulator, cleanup = record
    ours = _is_ours(emulator)
    if ours and emulator.pid is not None:
        end(emulator.pid)
    if cleanup:
        subprocess.run(cleanup, capture_output=True, check=False)
    _forget(state_home())
    return ours


def _record() -> Path:
    return state_home() / "emulator.json"


def _read_record() -> tuple[Emulator, list[str] | None] | None:
    """The emulator that was started in this home, and its cleanup command."""
    try:
        document = json.loads(_record().read_text())
        cleanup = document.pop("cleanup")
        return Emulator(**document), cleanup
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _forget(home: Path) -> None:
    for name in ("emulator.json", "terraform.tfstate", "terraform.tfstate.backup", ".terraform.tfstate.lock.info"):
        (home / name).unlink(missing_ok=True)
    for name in ("terraform", "localstack"):
        shutil.rmtree(home / name, ignore_errors=True)


def _is_ours(emulator: Emulator) -> bool:
    return emulator.pid is not None and emulator.kind in command_of(emulator.pid)


def _elsewhere(url: str) -> Emulator | None:
    """An emulator that somebody else runs. Only MiniStack answers at its own address."""
    if not _answers(url + _HEALTH):
        return None
    return Emulator("ministack" if _answers(f"{url}/_ministack/health") else "localstack", url)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # an emulator's  # noqa: S310  # nosec B310
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False
