"""The command group: loads a command's module when the command is used, and answers usage errors in JSON, too."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

import click


class CommandGroup(click.Group):
    """A group of commands in sections, each loaded when it is used.

    With `--output json` a usage error is a JSON document on stdout, too.

    Args:
        sections: for each heading of the help, its commands by name: the module in this package, and the line that the
            group's help shows, which is the first sentence of the command's own help.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, tuple[str, str]]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self._modules = {name: module for commands in sections.values() for name, (module, _) in commands.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, e.g. `start_round_command` of a module."""
        if cmd_name not in self._modules:
            return None
        module = importlib.import_module(f"orchestrator.cli.{self._modules[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, short_help) for name, (_, short_help) in commands.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments; parsing empties the list."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            arguments = ctx.meta[__name__]
            if "--output=json" in arguments or ("--output", "json") in itertools.pairwise(arguments):
                click.echo(error_json("UsageError", error.format_message(), error.exit_code))
            raise


def error_json(kind: str, message: str, status: int, details: Mapping[str, Any] | None = None) -> str:
    """An error as the JSON document that `--output json` prints."""
    document = {"error": {"kind": kind, "message": message, "exit_status": status}, **(details or {})}
    return json.dumps(document, indent=2)
