"""`orchestrator verify`: whether a global model is the average of the updates that its round pinned."""

from __future__ import annotations

import re

import click

from lambdas.protocol.fields import is_sha256
from lambdas.protocol.keys import check_name
from orchestrator.cli.options import Answer, Where, bucket_of, deployment_options, output_option
from orchestrator.progress import StderrNarration


def _shards(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,5}(,\d{1,5})*", value):
        expected = "expected numbers from 0, separated by commas"
        raise click.BadParameter(f"{value!r} is not a valid list of shards: {expected}.", ctx, param)
    return tuple(int(number) for number in value.split(","))


def _digest(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_sha256(value):
        expected = "expected 64 lower-case hexadecimal digits"
        raise click.BadParameter(f"{value!r} is not a valid SHA-256: {expected}.", ctx, param)
    return value


@click.command("verify")
@deployment_options
@click.option("--round", "round_id", required=True, help="The round's id. Its updates must not have expired.")
@click.option(
    "--shards", callback=_shards, metavar="M,M,...",
    help="Recompute only these shards and read only their ranges, e.g. 3,7. Default: all.",
)  # fmt: skip
@click.option(
    "--manifest-sha256", callback=_digest, metavar="HEX",
    help="The manifest's digest as you noted it when the round ran (the report names it).",
)  # fmt: skip
@output_option
def verify_command(where: Where, round_id: str, shards: tuple[int, ...] | None, manifest_sha256: str | None) -> Answer:
    """Verify a published global model byte for byte.

    Follows the round's SHA-256 chain from its report to its manifest and to the header and values of every update,
    recomputes the shards on this machine, and compares them with the report and with the published file. Needs read
    access to the bucket and nothing else. If a link of the chain does not hold, names it and exits with status 9.

    \b
      orchestrator verify --round r-1
      orchestrator verify --env prod --round 2026-11-23 --shards 3,7 --output json
    """
    from orchestrator.verification.verify import verify

    check_name("round", round_id)
    narration = StderrNarration()
    found = verify(bucket_of(where), round_id, shards=shards, manifest_sha256=manifest_sha256, narration=narration)
    return found.to_json(), found.to_text()
