"""`orchestrator compare`: GradsSharding, lambda-FL and LIFL on the same updates."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lambdas.protocol.errors import InvalidTensorFile
from lambdas.protocol.safetensors import NUM_EXAMPLES, header_length, parse_header
from orchestrator.cli.options import Answer, ShardCount, connect_to, env_option, output_option
from orchestrator.client.sources import from_file
from orchestrator.comparison.compare import ClientUpdate, Comparison, compare, synthetic_updates
from orchestrator.comparison.report import to_markdown, write_chart
from orchestrator.errors import BadInput
from orchestrator.progress import StderrNarration


@click.command("compare")
@env_option
@click.option("--model-bytes", type=click.IntRange(4), help="Bytes of one synthetic update.")
@click.option("--clients", type=click.IntRange(1), help="How many synthetic updates.")
@click.option(
    "--updates",
    type=click.Path(path_type=Path, file_okay=False),
    help="A directory of updates (*.safetensors, *.pt); a file's name is its client. Default: synthetic ones.",
)
@click.option("--shards", type=ShardCount(), default="auto", show_default=True, help="Shard count of grads-sharding.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Rounds per topology.")
@click.option(
    "--to", type=click.Path(path_type=Path, file_okay=False), default="compare-output", show_default=True,
    help="Where compare.json, compare.md and compare.png go.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave the rounds and global models in the bucket.")
@output_option
def compare_command(
    env: str,
    model_bytes: int | None,
    clients: int | None,
    updates: Path | None,
    shards: int | None,
    repeats: int,
    to: Path,
    keep: bool,
) -> Answer:
    """Run the three topologies for real, on the same updates, and put them side by side.

    The trees need an environment that is deployed with baselines = true. Where one of them does not fit, the table
    says why.

    \b
      orchestrator deploy --env local --var baselines=true
      orchestrator compare --model-bytes 20000000 --clients 9 --repeats 3
      orchestrator compare --env dev --updates updates/ --shards 16 --to results
    """
    narration = StderrNarration()
    if updates is None:
        if model_bytes is None or clients is None:
            raise BadInput("Nothing to compare: give --updates DIR, or --model-bytes and --clients for synthetic ones.")
        narration.say(f"No --updates: {clients} SYNTHETIC updates of random values, {model_bytes:,} bytes each.")
        given = synthetic_updates(model_bytes, clients)
    else:
        if model_bytes is not None or clients is not None:
            raise BadInput("--model-bytes and --clients are for synthetic updates. Leave them out with --updates.")
        given = _from_directory(updates)
    deployment, connected = connect_to(env)
    if deployment.endpoint_url:
        narration.say(
            "On an emulator: only counts, bytes, memory and dollars by formula carry over to AWS, no seconds."
        )
    comparison = Comparison(given, synthetic=updates is None, shards=shards, repeats=repeats, keep=keep)
    document = compare(connected, deployment, comparison, narration)
    text = to_markdown(document)
    to.mkdir(parents=True, exist_ok=True)
    (to / "compare.json").write_text(json.dumps(document, indent=2) + "\n")
    (to / "compare.md").write_text(text + "\n")
    try:
        write_chart(document, to / "compare.png")
    except BadInput as error:
        narration.say(f"No chart: {error}")
    narration.say(f"Saved in {to}.")
    return document, text


def _from_directory(directory: Path) -> list[ClientUpdate]:
    """The updates in a directory; the weight is an update file's own, else 1."""
    if not directory.is_dir():
        raise BadInput(f"There is no directory {directory}. Name one with *.safetensors or *.pt files.")
    paths = sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".pt"))
    if not paths:
        raise BadInput(f"{directory} holds no updates: expected *.safetensors or *.pt files. Name another directory.")
    return [ClientUpdate(path.stem, from_file(path), _examples(path)) for path in paths]


def _examples(path: Path) -> int:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            text = parse_header(file.read(header_length(file.read(8), size)), size).metadata.get(NUM_EXAMPLES, "1")
            return int(text)
    except (InvalidTensorFile, ValueError):
        return 1
