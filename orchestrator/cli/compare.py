"""`orchestrator compare`: the three topologies on the same updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lambdas.protocol.errors import InvalidTensorFile
from orchestrator.cli.options import Answer, ShardCount, Where, connect_to, deployment_options, output_option
from orchestrator.errors import BadInput, PlanningError
from orchestrator.progress import Narration, StderrNarration

if TYPE_CHECKING:
    from orchestrator.comparison.compare import ClientUpdate


@click.command("compare")
@deployment_options
@click.option("--model-bytes", type=click.IntRange(4), help="Bytes of one synthetic update.")
@click.option("--clients", type=click.IntRange(1), help="The number of synthetic updates.")
@click.option(
    "--updates",
    type=click.Path(path_type=Path, file_okay=False),
    help="A directory of updates (*.safetensors, *.pt), named after their clients. Default: synthetic updates.",
)
@click.option("--shards", type=ShardCount(), default="auto", help="Shard count of grads-sharding.")
@click.option("--repeats", type=click.IntRange(1), default=1, help="Rounds per topology.")
@click.option(
    "--to", type=click.Path(path_type=Path, file_okay=False), default="compare-output",
    help="The directory for compare.json, compare.md and compare.png.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Do not delete the rounds and global models from the bucket.")
@output_option
def compare_command(
    where: Where,
    model_bytes: int | None,
    clients: int | None,
    updates: Path | None,
    shards: int | None,
    repeats: int,
    to: Path,
    keep: bool,
) -> Answer:
    """Run the same round in all three topologies.

    Prints a table of time, cost and bytes. The trees need an environment that is deployed with baselines = true. If a
    tree does not fit, the table gives the reason.

    \b
      orchestrator deploy --env local --var baselines=true
      orchestrator compare --model-bytes 20000000 --clients 9 --repeats 3
      orchestrator compare --env dev --updates updates/ --shards 16 --to results
    """
    from orchestrator.comparison.compare import Comparison, compare
    from orchestrator.comparison.report import to_markdown

    narration = StderrNarration()
    given = _updates(updates, model_bytes, clients, narration)
    deployment, connected = connect_to(where)
    if deployment.endpoint_url:
        narration.say("On an emulator: counts, bytes, memory and dollars by formula are those of AWS; seconds are not.")
    comparison = Comparison(given, synthetic=updates is None, shards=shards, repeats=repeats, keep=keep)
    document = compare(connected, deployment, comparison, narration)
    text = to_markdown(document)
    _save(document, text, to, narration)
    return document, text


def _updates(
    directory: Path | None, model_bytes: int | None, clients: int | None, narration: Narration
) -> list[ClientUpdate]:
    """The updates in a directory, or synthetic ones."""
    from orchestrator.comparison.compare import synthetic_updates

    if directory is not None:
        if model_bytes is not None or clients is not None:
            raise BadInput("--model-bytes and --clients are for synthetic updates. Leave them out with --updates.")
        return _from_directory(directory)
    if model_bytes is None or clients is None:
        raise BadInput("Nothing to compare: pass --updates DIR, or --model-bytes and --clients for synthetic updates.")
    narration.say(f"No --updates: {clients} SYNTHETIC updates of random values, {model_bytes:,} bytes each.")
    return synthetic_updates(model_bytes, clients)


def _save(document: dict[str, Any], text: str, directory: Path, narration: Narration) -> None:
    """Write the comparison as JSON, Markdown and, if matplotlib is installed, a chart."""
    from orchestrator.comparison.report import write_chart

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "compare.json").write_text(json.dumps(document, indent=2) + "\n")
    (directory / "compare.md").write_text(text + "\n")
    try:
        write_chart(document, directory / "compare.png")
    except PlanningError as error:
        narration.say(f"No chart: {error}")
    narration.say(f"Saved in {directory}.")


def _from_directory(directory: Path) -> list[ClientUpdate]:
    """The updates in a directory, weighted by the example counts of update files, and by 1 otherwise."""
    from orchestrator.client.sources import from_file
    from orchestrator.comparison.compare import ClientUpdate

    if not directory.is_dir():
        raise BadInput(f"There is no directory {directory}. Name one with *.safetensors or *.pt files.")
    paths = sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".pt"))
    if not paths:
        raise BadInput(f"{directory} holds no updates: expected *.safetensors or *.pt files. Name another directory.")
    return [ClientUpdate(path.stem, from_file(path), _examples(path)) for path in paths]


def _examples(path: Path) -> int:
    from lambdas.protocol.safetensors import NUM_EXAMPLES
    from orchestrator.comparison.ulps import read_header

    try:
        return int(read_header(path).metadata.get(NUM_EXAMPLES, "1"))
    except (InvalidTensorFile, ValueError):
        return 1
