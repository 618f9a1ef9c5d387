"""The commands of clients, submit and fetch, and the command that invites clients."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lambdas.protocol.errors import InvalidUpdate
from lambdas.protocol.keys import check_name
from orchestrator.cli.options import (
    Answer,
    ClientList,
    Duration,
    Where,
    bucket_of,
    deployment_options,
    output_option,
    round_option,
)
from orchestrator.client.wire import WIRE_NAMES
from orchestrator.errors import BadInput
from orchestrator.progress import StderrNarration

if TYPE_CHECKING:
    from orchestrator.client.invitation import Invitation

_invite_option = click.option(
    "--invite",
    "invitation_file",
    type=click.Path(path_type=Path),
    help="A file of `orchestrator invite`, instead of AWS credentials.",
)
_wire_option = click.option(
    "--wire",
    type=click.Choice(list(WIRE_NAMES)),
    callback=lambda ctx, param, name: WIRE_NAMES[name] if name else None,
    help="Store float32 tensors in this dtype, in half the bytes.",
)


@click.command("submit")
@click.argument("file", type=click.Path(path_type=Path))
@deployment_options
@click.option("--round", "round_id", help="The round's id.")
@click.option("--client", help="The client's id: letters, digits, - and _.")
@click.option("--examples", type=int, required=True, help="The number of training examples: the update's weight.")
@_wire_option
@_invite_option
@output_option
def submit_command(
    file: Path,
    where: Where,
    round_id: str | None,
    client: str | None,
    examples: int,
    wire: str | None,
    invitation_file: Path | None,
) -> Answer:
    """Submit a client's update to a round.

    FILE is a safetensors file or a PyTorch state_dict file. A client can submit one update to a round.

    With --invite neither AWS credentials nor an environment are needed. The invitation sets round, client and dtype.

    \b
      orchestrator submit model.safetensors --round r-1 --client hospital-7 --examples 1203
      orchestrator submit state_dict.pt --env prod --round r-1 --client hospital-7 --examples 1203 --wire bfloat16
      orchestrator submit model.safetensors --invite r-1-hospital-7.json --examples 1203
    """
    from orchestrator.client.redeem import submit_invited
    from orchestrator.client.sources import from_file
    from orchestrator.client.submit import submit

    invitation = None
    if invitation_file is not None:
        invitation = _invitation(invitation_file, round_id=round_id, client=client, wire=wire)
        round_id, client = invitation.round_id, invitation.client
    if round_id is None or client is None:
        raise click.UsageError("Missing option '--round' or '--client': name both, or pass --invite.")
    check_name("client id", client)
    check_name("round", round_id)
    try:
        tensors = from_file(file)
        if invitation is not None:
            result = submit_invited(invitation, tensors, examples)
        else:
            result = submit(bucket_of(where), round_id, client, tensors, examples, wire=wire)
    except (BadInput, InvalidUpdate) as error:
        named = f"client {client}" in str(error).lower()
        raise error if named else BadInput(f"Client {client}: {error}") from error
    text = f"Client {client}'s update of {result.nbytes:,} bytes is in round {round_id}"
    return asdict(result), text + ("." if result.created else " already.")


def _invitation(file: Path, **expected: str | None) -> Invitation:
    """The invitation in a file, if it is for what the other options name."""
    from orchestrator.client.invitation import check_matches, load_invitation

    invitation = load_invitation(file)
    check_matches(invitation, **expected)
    return invitation


@click.command("fetch")
@deployment_options
@click.option("--model", help="The model's name.")
@click.option("--round", "round_id", help="The round that published the global model. Default: the newest.")
@click.option(
    "--to", type=click.Path(path_type=Path, dir_okay=False), default="global.safetensors",
    help="The file to write.",
)  # fmt: skip
@_invite_option
@output_option
def fetch_command(
    where: Where, model: str | None, round_id: str | None, to: Path, invitation_file: Path | None
) -> Answer:
    """Fetch a published global model.

    Writes a safetensors file. With --invite, fetches the global model of the invitation's round if it is published, and
    otherwise the global model that the round starts from.

    \b
      orchestrator fetch --model digits --to global.safetensors
      orchestrator fetch --model digits --round r-1
      orchestrator fetch --invite r-1-hospital-7.json
    """
    from orchestrator.client.fetch import fetch
    from orchestrator.client.redeem import fetch_invited

    if round_id is not None:
        check_name("round", round_id)
    if invitation_file is not None:
        fetched = fetch_invited(_invitation(invitation_file, model=model), to, round_id=round_id)
    elif model is None:
        raise click.UsageError("Missing option '--model': name the model, or pass --invite.")
    else:
        check_name("model", model)
        fetched = fetch(bucket_of(where), model, to, round_id=round_id)
    what = f"{fetched.model} of round {fetched.round_id}"
    text = f"{fetched.path}: {what}, {fetched.nbytes:,} bytes, sha256 {fetched.sha256}"
    return asdict(fetched), text


@click.command("invite")
@deployment_options
@round_option
@click.option("--client", "clients_given", multiple=True, help="A client's id (repeatable). Each gets an invitation.")
@click.option(
    "--clients", "listed", type=ClientList(), default=(), help="Several ids: a file with one per line, or a,b,c."
)
@click.option(
    "--expires", type=Duration(), default=6 * 3600.0, show_default=False,
    help="How long the invitation is valid, e.g. 90m, at most 168h. Default: 6h.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="File to write; for several clients a directory.")
@click.option("--model", help="The model's name, if the round is not open yet.")
@_wire_option
@click.option(
    "--like", type=click.Path(path_type=Path), help="For a model's first round: a file with the model's tensors."
)
@click.option("--model-bytes", type=click.IntRange(min=1), help="Instead of --like: the bytes of the model's tensors.")
@output_option
def invite_command(
    where: Where,
    round_id: str,
    clients_given: tuple[str, ...],
    listed: tuple[str, ...],
    expires: float,
    out: Path | None,
    like: Path | None,
    **about: Any,
) -> Answer:
    """Invite clients that have no AWS credentials to a round.

    An invitation is a small JSON file. Without --client, invites the clients that the round was opened for
    (--expect-clients).

    The holder of an invitation can upload one update of exactly the model's size, once, and download the global model.
    Your credentials sign it, and it expires with them. Anyone who has the file can use it: send it like a password.

    \b
      orchestrator invite --round r-1 --client hospital-7 --out hospital-7.json
      orchestrator invite --env prod --round r-1 --clients hospital-7,hospital-8 --expires 12h --out invitations/
      orchestrator invite --round r-1 --client hospital-7 --model digits --like initial.safetensors
    """
    from orchestrator.client.invite import invite, prepare
    from orchestrator.client.signing import early_end
    from orchestrator.client.sources import from_file

    bucket = bucket_of(where)
    inviting = prepare(bucket, round_id, table=from_file(like).table if like else None, **about)
    names = list(dict.fromkeys([*clients_given, *listed])) or list(inviting.expect_clients)
    if not names:
        raise click.UsageError("Missing option '--client': the round was opened for no client by name. Name one.")
    warning = early_end(bucket.s3, expires)
    if warning:
        StderrNarration().say(f"Warning: {warning}")
    invitations = [invite(bucket, inviting, name, expires) for name in names]
    document = {
        "round": round_id, "model": inviting.model, "update_bytes": inviting.size.nbytes, "warning": warning,
        "expires_at": invitations[0].expires_at,
    }  # fmt: skip
    if out is None:
        # One invitation per line, so that the output can be piped.
        lines = [invitation.to_json() for invitation in invitations]
        return document | {"invitations": [json.loads(line) for line in lines]}, "\n".join(lines)
    files = _write(out, invitations)
    text = f"{len(files)} invitation{'s' if len(files) > 1 else ''} to round {round_id}: {', '.join(files.values())}"
    return document | {"files": files}, text


def _write(out: Path, invitations: list[Invitation]) -> dict[str, str]:
    """Write a file per invitation, which only its owner can read; the paths by client."""
    several = len(invitations) > 1 or out.is_dir() or str(out).endswith("/")
    paths = {}
    try:
        if several:
            out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for invitation in invitations:
            path = out / f"{invitation.round_id}-{invitation.client}.json" if several else out
            path.unlink(missing_ok=True)  # an existing file could have wider permissions
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(invitation.to_json() + "\n")
            paths[invitation.client] = str(path)
    except OSError as error:
        raise BadInput(f"Cannot write {error.filename or out}: {error.strerror}. Choose another --out.") from error
    return paths
