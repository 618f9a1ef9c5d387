"""The command group: loads a command's module when the command is used, and answers usage errors in JSON, too."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Entry:
    """A command that is loaded when it is used.

    Attributes:
        target: where the click command is, as `module:attribute`.
        help: the line that the group's help shows; the first sentence of the command's own help.
    """

    target: str
    help: str

    def load(self) -> click.Command:
        """Import the command."""
        module, attribute = self.target.split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class CommandGroup(click.Group):
    """A group of commands in sections, each loaded when it is used.

    With `--output json` a usage error is a JSON document on stdout, too.

    Args:
        sections: commands by name, by the heading under which the help lists them.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Entry]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self._entries = {name: entry for entries in sections.values() for name, entry in entries.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = self._entries.get(cmd_name)
        return entry.load() if entry else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        for heading, entries in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, entry.help) for name, entry in entries.items()])

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
