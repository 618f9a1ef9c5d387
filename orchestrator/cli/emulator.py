"""The commands of the embedded emulator: start, stop and status."""

from __future__ import annotations

from dataclasses import asdict

import click

from orchestrator.cli.options import Answer, output_option
from orchestrator.progress import StderrNarration


@click.group("emulator")
def emulator_command() -> None:
    """Run an AWS emulator on this machine.

    It needs neither Docker nor an AWS account.
    """


@emulator_command.command("start")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 4566, or a free port if 4566 is in use.")
@output_option
def emulator_start(port: int | None) -> Answer:
    """Start the emulator in the background and print its URL.

    EMULATOR selects it: ministack (default) or localstack (in Docker, or installed from PyPI without Docker).
    If AWS_ENDPOINT_URL names a running emulator, that one is used and nothing is started.

    \b
      orchestrator emulator start
      orchestrator emulator start --port 4599 --output json
      EMULATOR=localstack orchestrator emulator start
    """
    from orchestrator.emulators import emulator

    running = emulator.start(port, StderrNarration())
    log = f"; log: {running.log}" if running.log else "."
    return asdict(running), f"{running.kind} listens on {running.url}{log}"


@emulator_command.command("stop")
@output_option
def emulator_stop() -> Answer:
    """Stop the emulator and discard everything deployed in it.

    \b
      orchestrator emulator stop
    """
    from orchestrator.emulators import emulator

    stopped = emulator.stop()
    return {"stopped": stopped}, "The emulator is stopped." if stopped else "No emulator was running."


@emulator_command.command("status")
@output_option
def emulator_status() -> Answer:
    """Show whether the emulator is running, and its URL.

    \b
      orchestrator emulator status
    """
    from orchestrator.emulators import emulator

    running = emulator.running()
    text = f"{running.kind} listens on {running.url}." if running else "No emulator is running."
    return asdict(running) if running else None, text
