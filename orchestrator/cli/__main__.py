"""Lets `python -m orchestrator.cli` run the command line."""

from orchestrator.cli.main import main

main()
