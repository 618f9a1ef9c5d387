"""Runs the command line for `python -m orchestrator.cli`."""

from orchestrator.cli.main import main

main(prog_name="orchestrator")
