"""The command line starts quickly: commands and libraries are imported when they are used. Counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from orchestrator.cli.main import SECTIONS, main

HEAVY = {"boto3", "botocore", "numpy", "torch", "python_terraform", "tqdm", "matplotlib", "ministack"}
COMMANDS = {name: entry for commands in SECTIONS.values() for name, entry in commands.items()}
# Of this project, for the help of the group: orchestrator, its cli package, group and main.
MODULES_FOR_HELP = 4


def modules_after(code: str) -> set[str]:
    """The modules that a new interpreter has loaded after some code."""
    report = "import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))"
    done = subprocess.run([sys.executable, "-c", f"{report}\n{code}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


def modules_of(*arguments: str) -> set[str]:
    """The modules that the command line has loaded when it ends."""
    return modules_after(f"from orchestrator.cli.main import main; main({list(arguments)!r}, 'orchestrator')")


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] in ("orchestrator", "lambdas")}


def test_the_help_imports_no_command_and_no_library() -> None:
    modules = modules_of("--help")
    assert not modules & HEAVY
    assert len(ours(modules)) <= MODULES_FOR_HELP, sorted(ours(modules))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_imports_that_command_and_light_modules(name: str) -> None:
    modules = modules_of(name, "--help")
    assert not modules & HEAVY
    assert len(ours(modules)) <= 20, sorted(ours(modules))
    others = {module for module, _ in COMMANDS.values()} - {COMMANDS[name][0]}
    assert not modules & {f"orchestrator.cli.{module}" for module in others}


@pytest.mark.parametrize("module", ["request", "start", "status"])
def test_the_modules_of_a_round_do_not_load_numpy(module: str) -> None:
    assert "numpy" not in modules_after(f"import orchestrator.rounds.{module}")


def test_a_mistake_in_the_arguments_is_reported_without_boto3() -> None:
    code = "from orchestrator.cli.main import main\ntry: main(['submit', 'x'], 'orchestrator')\nexcept SystemExit: pass"
    report = "import sys; print(sorted(sys.modules.keys() & {'boto3', 'numpy'}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    assert "Missing option '--examples'" in done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_names_a_command_and_the_first_sentence_of_its_help(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert COMMANDS[name][1] == f"{command.get_short_help_str(200).rstrip('.')}."


def test_a_command_that_does_not_exist_is_none() -> None:
    assert main.get_command(click.Context(main), "no-such-command") is None


def test_without_a_terminal_no_progress_bar_is_shown_and_tqdm_is_not_imported() -> None:
    code = "from orchestrator.progress import StderrNarration\nwith StderrNarration().bar('x', 2) as step: step(1)"
    assert "tqdm" not in modules_after(code)
