"""The commands that clients run, submit and fetch, and the one that invites them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from lambdas.protocol.errors import InvalidUpdate
from lambdas.protocol.keys import check_name
from orchestrator.cli.options import Answer, ClientList, Duration, connect_to, env_option, output_option
from orchestrator.client.fetch import fetch
from orchestrator.client.invitation import Invitation, check_matches, load_invitation
from orchestrator.client.invite import invite, prepare
from orchestrator.client.redeem import fetch_invited, submit_invited
from orchestrator.client.signing import early_end, signing_credentials
from orchestrator.client.sources import from_file
from orchestrator.client.submit import submit
from orchestrator.client.update_file import WIRE_NAMES
from orchestrator.errors import BadInput
from orchestrator.progress import StderrNarration

_invite_option = click.option(
    "--invite",
    "invitation_file",
    type=click.Path(path_type=Path),
    help="An invitation instead of AWS credentials: a file of `orchestrator invite`.",
)
_wire_option = click.option(
    "--wire", type=click.Choice(list(WIRE_NAMES)), help="Store float32 tensors in this dtype: half the bytes."
)


@click.command("submit")
@click.argument("file", type=click.Path(path_type=Path))
@env_option
@click.option("--round", "round_id", help="The round's id.")
@click.option("--client", help="The client's id: letters, digits, - and _.")
@click.option("--examples", type=int, required=True, help="How many examples the client trained on: its weight.")
@_wire_option
@_invite_option
@output_option
def submit_command(
    file: Path,
    env: str,
    round_id: str | None,
    client: str | None,
    examples: int,
    wire: str | None,
    invitation_file: Path | None,
) -> Answer:
    """Submit a client's weights: a safetensors file, or a PyTorch state_dict file. Written once.

    With --invite no AWS credentials and no environment are needed; round, client and dtype are the invitation's.

    \b
      orchestrator submit model.safetensors --round r-1 --client hospital-7 --examples 1203
      orchestrator submit state_dict.pt --env prod --round r-1 --client hospital-7 --examples 1203 --wire bfloat16
      orchestrator submit model.safetensors --invite r-1-hospital-7.json --examples 1203
    """
    wire_dtype = WIRE_NAMES[wire] if wire else None
    invitation = None
    if invitation_file is not None:
        invitation = load_invitation(invitation_file)
        check_matches(invitation, round_id=round_id, client=client, wire=wire_dtype)
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
            deployment, aws = connect_to(env)
            result = submit(aws.bucket(deployment.bucket), round_id, client, tensors, examples, wire=wire_dtype)
    except (BadInput, InvalidUpdate) as error:
        named = f"client {client}" in str(error).lower()
        raise error if named else BadInput(f"Client {client}: {error}") from error
    text = f"Client {client}'s update of {result.nbytes:,} bytes is in round {round_id}"
    return asdict(result), text + ("." if result.created else " already.")


@click.command("fetch")
@env_option
@click.option("--model", help="The model's name.")
@click.option("--round", "round_id", help="The round whose global model to fetch. Default: the newest.")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), default="global.safetensors", show_default=True)
@_invite_option
@output_option
def fetch_command(env: str, model: str | None, round_id: str | None, to: Path, invitation_file: Path | None) -> Answer:
    """Fetch a published global model: a safetensors file.

    An invitation gives its round's global model where that is published, else the one to start from.

    \b
      orchestrator fetch --model digits --to global.safetensors
      orchestrator fetch --model digits --round r-1
      orchestrator fetch --invite r-1-hospital-7.json
    """
    if round_id is not None:
        check_name("round", round_id)
    if invitation_file is not None:
        invitation = load_invitation(invitation_file)
        check_matches(invitation, model=model)
        fetched = fetch_invited(invitation, to, round_id=round_id)
    elif model is None:
        raise click.UsageError("Missing option '--model': name the model, or pass --invite.")
    else:
        check_name("model", model)
        deployment, aws = connect_to(env)
        fetched = fetch(aws.bucket(deployment.bucket), model, to, round_id=round_id)
    what = f"{fetched.model} of round {fetched.round_id}"
    text = f"{fetched.path}: {what}, {fetched.nbytes:,} bytes, sha256 {fetched.sha256}"
    return asdict(fetched), text


@click.command("invite")
@env_option
@click.option("--round", "round_id", required=True, help="The round's id.")
@click.option("--client", "clients_given", multiple=True, help="A client's id (repeatable): one invitation each.")
@click.option("--clients", "listed", type=ClientList(), default=(), help="Several at once: a,b,c or a file of them.")
@click.option("--expires", type=Duration(), default=6 * 3600.0, help="Life, e.g. 90m, at most 168h. Default: 6h.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; a directory for several clients.")
@click.option("--model", help="The model's name, where the round is not open yet.")
@_wire_option
@click.option("--like", type=click.Path(path_type=Path), help="A model's first round: a file with its tensors.")
@click.option("--model-bytes", type=click.IntRange(min=1), help="The same, where only its bytes are known.")
@output_option
def invite_command(
    env: str,
    round_id: str,
    clients_given: tuple[str, ...],
    listed: tuple[str, ...],
    expires: float,
    out: Path | None,
    model: str | None,
    wire: str | None,
    like: Path | None,
    model_bytes: int | None,
) -> Answer:
    """Invite clients to a round: a small JSON file each, with which they need no AWS credentials.

    Without --client, everybody whom the round was opened for (--expect-clients) is invited.

    It lets its holder upload one update, once, of exactly the model's size, and download the global model. It is signed
    with your credentials, and ends with them. Whoever has the file may use it: send it as you would send a password.

    \b
      orchestrator invite --round r-1 --client hospital-7 --out hospital-7.json
      orchestrator invite --env prod --round r-1 --clients hospital-7,hospital-8 --expires 12h --out invitations/
      orchestrator invite --round r-1 --client hospital-7 --model digits --like initial.safetensors
    """
    deployment, aws = connect_to(env)
    inviting = prepare(
        aws.bucket(deployment.bucket),
        round_id,
        model=model,
        wire=WIRE_NAMES[wire] if wire else None,
        table=from_file(like).table if like else None,
        model_bytes=model_bytes,
    )
    names = list(dict.fromkeys([*clients_given, *listed])) or list(inviting.expect_clients)
    if not names:
        raise click.UsageError("Missing option '--client': name whom to invite; the round names nobody.")
    warning = early_end(signing_credentials(aws.s3), expires)
    if warning:
        StderrNarration().say(f"Warning: {warning}")
    invitations = [invite(aws.bucket(deployment.bucket), inviting, name, expires) for name in names]
    document = {
        "round": round_id, "model": inviting.model, "update_bytes": inviting.size.nbytes, "warning": warning,
        "expires_at": invitations[0].expires_at,
    }  # fmt: skip
    if out is None:
        # Data on stdout: an invitation per line is what a pipe wants.
        lines = [invitation.to_json() for invitation in invitations]
        return document | {"invitations": [json.loads(line) for line in lines]}, "\n".join(lines)
    paths = [str(path) for path in _write(out, invitations)]
    text = f"{len(paths)} invitation{'s' if len(paths) > 1 else ''} to round {round_id}: {', '.join(paths)}"
    return document | {"files": dict(zip(names, paths, strict=True))}, text


def _write(out: Path, invitations: list[Invitation]) -> list[Path]:
    """A file per invitation, for its owner's eyes only."""
    several = len(invitations) > 1 or out.is_dir() or str(out).endswith("/")
    paths = []
    try:
        if several:
            out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for invitation in invitations:
            path = out / f"{invitation.round_id}-{invitation.client}.json" if several else out
            path.unlink(missing_ok=True)  # its permissions may be wider
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(invitation.to_json() + "\n")
            paths.append(path)
    except OSError as error:
        raise BadInput(f"Cannot write {error.filename or out}: {error.strerror}. Choose another --out.") from error
    return paths


COMMANDS = (submit_command, fetch_command, invite_command)
