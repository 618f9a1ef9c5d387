"""The invitation document: a small JSON file with which a client submits one update and fetches the global model.

It contains presigned URLs, so that the client needs no AWS account. Anyone who has the file can use it: treat it like a
password until it expires. invite.py makes invitations and redeem.py uses them.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from lambdas.protocol.documents import build, canonical_json, parse_object, sha256_hex
from lambdas.protocol.errors import InvalidContract, shown
from lambdas.protocol.fields import ClientId, ModelName, RoundId, Sha256, integer, one_of
from lambdas.protocol.keys import global_key, update_key
from lambdas.protocol.limits import MAX_INT, MAX_PARTS
from lambdas.protocol.tensor_table import WIRE_DTYPES
from orchestrator.errors import BadInput

SCHEMA = 1
# The largest file that is read as an invitation: 10,000 parts with long session tokens fit.
_MAX_BYTES = 32 * 1024**2
# The tolerated error of a client's clock. S3 checks the expiry by its own clock in any case.
_CLOCK_SKEW_S = 15 * 60
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_Bytes = Annotated[int, integer(1, MAX_INT)]


class UnusableInvitation(BadInput):
    """An invitation that is damaged, altered or expired, or that S3 does not accept."""


@dataclass(frozen=True)
class Parts:
    """Presigned requests of a multipart upload. Part i + 1 is PUT to `urls[i]`; all but the last have `part_bytes`."""

    part_bytes: _Bytes
    urls: tuple[str, ...]
    complete_url: str
    abort_url: str


@dataclass(frozen=True)
class Invitation:
    """One client's invitation to one round.

    Attributes:
        issued_at, expires_at: seconds since the epoch.
        size: bytes of the update's file; S3 accepts no other size.
        header_bytes: bytes in front of the data section.
        wire: dtype in which float32 tensors are stored (`BF16`, `F16`); None: float32.
        tensors_sha256: SHA-256 of the model's tensor table; None in a model's first round.
        put_url: presigned PUT of the whole update; None if it is uploaded in parts.
        parts: the multipart upload; None if the update is uploaded with one PUT.
        stored_url: presigned GET of the header of the stored update.
        closed_url: presigned HEAD of the manifest, which exists once the round is closed.
        result_url: presigned GET of the global model that the round will publish.
        base_round, base_url: the global model to start from; None in a model's first round.
    """

    round_id: RoundId
    client: ClientId
    model: ModelName
    issued_at: float
    expires_at: float
    size: _Bytes
    header_bytes: Annotated[int, integer(8, MAX_INT)]
    stored_url: str
    closed_url: str
    result_url: str
    wire: Annotated[str, one_of(WIRE_DTYPES)] | None = None
    tensors_sha256: Sha256 | None = None
    put_url: str | None = None
    parts: Parts | None = None
    base_round: RoundId | None = None
    base_url: str | None = None

    def to_json(self) -> str:
        """One line of JSON. Its SHA-256 detects damage; S3 checks the signatures of the URLs."""
        document = {"schema": SCHEMA, "kind": "invitation", **asdict(self)}
        return canonical_json(document | {"sha256": sha256_hex(canonical_json(document))}).decode()

    @property
    def key(self) -> str:
        """Key of the update."""
        return update_key(self.round_id, self.client)

    def urls(self) -> list[str]:
        """All URLs of the invitation."""
        single = (self.put_url, self.stored_url, self.closed_url, self.result_url, self.base_url)
        parts = (*self.parts.urls, self.parts.complete_url, self.parts.abort_url) if self.parts else ()
        return [url for url in (*single, *parts) if url is not None]

    def check_time(self) -> None:
        """Refuse an invitation that has expired by this machine's clock, with a tolerance of 15 minutes.

        Raises:
            UnusableInvitation: the invitation has expired.
        """
        if time.time() > self.expires_at + _CLOCK_SKEW_S:
            raise expired(self)


def expired(invitation: Invitation) -> UnusableInvitation:
    """The error for an invitation that has expired."""
    # `expires_at` can be any number; 9999 is the last year that can be formatted.
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(max(invitation.expires_at, 0.0), 253402300799.0)))
    return UnusableInvitation(
        f"The invitation of client {invitation.client} to round {invitation.round_id} has expired: it was valid until "
        f"{until}. Ask for a new one."
    )


def check_matches(
    invitation: Invitation,
    *,
    round_id: str | None = None,
    client: str | None = None,
    model: str | None = None,
    wire: str | None = None,
) -> None:
    """Raise BadInput if an invitation is for another round, client, model or wire dtype than these; None: any."""
    asked = (
        ("round", round_id, invitation.round_id),
        ("client", client, invitation.client),
        ("model", model, invitation.model),
        ("wire dtype", wire, invitation.wire or "none"),
    )
    for what, wanted, found in asked:
        if wanted not in (None, found):
            raise BadInput(f"The invitation is for {what} {found}, not {wanted}. Use the one for {wanted}.")


def load_invitation(source: str | Path | Mapping[str, Any]) -> Invitation:
    """Read an invitation from its file, its text, or the parsed JSON.

    Raises:
        UnusableInvitation: it is not an invitation, or it was changed after it was made.
        BadInput: the file cannot be read.
    """
    if isinstance(source, Mapping):
        return parse_invitation(json.dumps(dict(source)))
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return parse_invitation(source)
    path = Path(source)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: not a valid file name
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"Cannot read the invitation {shown(str(path))}: {reason}.") from error
    if len(data) > _MAX_BYTES:
        raise UnusableInvitation(f"{path} is not an invitation: it is larger than {_MAX_BYTES:,} bytes.")
    return parse_invitation(data.decode("utf-8", errors="replace"))


def parse_invitation(text: str) -> Invitation:
    """Parse an invitation's text.

    Raises:
        UnusableInvitation: it is not an invitation, was changed after it was made, or its URLs are for other objects.
    """
    try:
        invitation = _parse(text)
        _check_urls(invitation)
    except InvalidContract as error:
        raise UnusableInvitation(
            f"{error} It is not an invitation from `orchestrator invite`, or it was damaged. Pass the file as you "
            "received it, or ask for it again."
        ) from error
    return invitation


def _parse(text: str) -> Invitation:
    document = parse_object("Invitation", text)
    if document.get("kind") != "invitation":
        raise InvalidContract(f"Invitation: field 'kind': expected 'invitation', found {shown(document.get('kind'))}.")
    digest = document.pop("sha256", None)
    try:
        content = canonical_json(document)
    except ValueError:  # an infinite float, or half a surrogate pair
        content = b""
    if digest != sha256_hex(content):
        raise InvalidContract("Invitation: its content does not match its digest: it was changed since it was made.")
    invitation = build("Invitation", Invitation, document)
    size, parts = invitation.size, invitation.parts
    if (parts is None) == (invitation.put_url is None):
        raise InvalidContract("Invitation: expected one of put_url and parts.")
    if invitation.header_bytes > size:
        raise InvalidContract(f"Invitation: a header of {invitation.header_bytes} bytes in a file of {size}.")
    if parts is not None and (len(parts.urls) > MAX_PARTS or len(parts.urls) != -(-size // parts.part_bytes)):
        raise InvalidContract(f"Invitation: {len(parts.urls)} parts of {parts.part_bytes} bytes do not make {size}.")
    return invitation


def _check_urls(invitation: Invitation) -> None:
    """Check that every URL is for this client's update, the manifest or the model, on one host, with TLS."""
    expected = _keys(invitation)
    hosts = set()
    for url in invitation.urls():
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidContract("Invitation: one of its URLs is not a valid URL.") from error
        if host is None or not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)):
            raise InvalidContract("Invitation: expected https URLs (http only to this machine, for emulators).")
        hosts.add((parts.scheme, host, port))
        key = expected.get(url)
        if key is not None and not urllib.parse.unquote(parts.path).endswith(f"/{key}"):
            raise InvalidContract(f"Invitation: one of its URLs is for another object than {key}.")
    if len(hosts) > 1:
        raise InvalidContract("Invitation: its URLs lead to different hosts.")


def _keys(invitation: Invitation) -> dict[str | None, str]:
    """The key of the object that each URL has to be for."""
    expected: dict[str | None, str] = {invitation.stored_url: invitation.key, invitation.put_url: invitation.key}
    if invitation.parts:
        own = (*invitation.parts.urls, invitation.parts.complete_url, invitation.parts.abort_url)
        expected |= dict.fromkeys(own, invitation.key)
    expected[invitation.result_url] = global_key(invitation.model, invitation.round_id)
    if invitation.base_url is not None:
        if invitation.base_round is None:
            raise InvalidContract("Invitation: base_url without base_round.")
        expected[invitation.base_url] = global_key(invitation.model, invitation.base_round)
    return expected
