"""Uses an invitation: submits an update and fetches the global model over HTTPS, without AWS credentials.

S3's error responses become errors that say what an invited client can do.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import IO

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import TensorTableMismatch
from lambdas.protocol.tensor_table import TensorTable
from orchestrator.client.fetch import Fetched, store
from orchestrator.client.invitation import Invitation, Parts, UnusableInvitation, expired
from orchestrator.client.presigned import Answer, FilePart, ask, refusal, stream
from orchestrator.client.sources import Tensors
from orchestrator.client.submit import Submitted
from orchestrator.client.update_file import WrittenUpdate, in_file_order, write_update
from orchestrator.errors import BadInput, OrchestratorError, RoundConflict

# S3's error codes if an update is stored already, or if the multipart upload was completed or aborted.
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchUpload")
_ENDED_CREDENTIALS = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "InvalidClientTokenId")
_BAD_SIGNATURE = ("SignatureDoesNotMatch", "AuthorizationQueryParametersError")
_CHUNK = 1024**2


def submit_invited(invitation: Invitation, tensors: Tensors, num_examples: int) -> Submitted:
    """Submit the update that an invitation is for, once. Submitting the identical update again changes nothing.

    Raises:
        UnusableInvitation: the invitation is expired or altered, or S3 does not accept it.
        RoundConflict: another update of this client is stored, or the round is closed.
        TensorTableMismatch, BadInput: the update does not have the model's tensors, or cannot be averaged.
        OrchestratorError: S3 cannot be reached.
    """
    invitation.check_time()
    _check_table(invitation, tensors.table)
    with tempfile.TemporaryFile(prefix="update-") as file:
        update = write_update(tensors, num_examples, file, wire=invitation.wire, size=invitation.size)
        submitted = Submitted(
            invitation.key, update.nbytes, sha256_hex(update.header), update.data_sha256, num_examples, created=False
        )
        if ask("HEAD", invitation.closed_url).ok:
            if _is_stored(invitation, update):
                return submitted
            raise RoundConflict(
                f"Round {invitation.round_id} is closed: its updates are pinned. Ask for an invitation to the next "
                "round."
            )
        answer = _put(invitation, file)
    if answer.ok:
        return replace(submitted, created=True)
    if answer.code in _TAKEN and _is_stored(invitation, update):
        return submitted
    raise _not_taken(invitation, answer)


def _not_taken(invitation: Invitation, answer: Answer) -> OrchestratorError:
    """Why S3 did not take an update."""
    if answer.code not in _TAKEN:
        return _explained(answer, invitation)
    if answer.code == "NoSuchUpload" and not ask("GET", invitation.stored_url, headers=_range(invitation)).ok:
        return UnusableInvitation(
            f"The multipart upload of the {_called(invitation)} was deleted, and no update is stored. Ask for a new "
            "invitation."
        )
    return RoundConflict(
        f"Client {invitation.client} has already submitted another update to round {invitation.round_id}. Updates are "
        "written once: an invitation cannot be used for a second one."
    )


def fetch_invited(invitation: Invitation, to: Path, *, round_id: str | None = None) -> Fetched:
    """Store at `to` the newest global model that an invitation gives.

    That is the model of its round if it is published, else the one to start from; with `round_id`, that round's.

    Raises:
        UnusableInvitation: the invitation is expired or altered, or S3 does not accept it.
        BadInput: the invitation does not give that model, or the file cannot be written.
        OrchestratorError: S3 cannot be reached, or the download ended early.
    """
    invitation.check_time()
    offers = [(invitation.round_id, invitation.result_url)]
    if invitation.base_round is not None and invitation.base_url is not None:
        offers.append((invitation.base_round, invitation.base_url))
    for offered, url in offers:
        if round_id not in (None, offered):
            continue
        with stream("GET", url) as response:
            if response.status == 200:
                size = int(response.headers["Content-Length"])
                return store(to, invitation.model, offered, response.stream(_CHUNK), size)
            answer = refusal(response)
        if answer.code != "NoSuchKey":
            raise _explained(answer, invitation)
    if invitation.base_round is None:
        raise BadInput(
            f"Model {invitation.model} has no global model yet: round {invitation.round_id} is its first, and has not "
            "published yet. Start from the model that the federation agreed on."
        )
    raise BadInput(
        f"Round {round_id or invitation.round_id} has published no global model of {invitation.model}; the invitation "
        f"is for {' and '.join(offered for offered, _ in offers)}."
    )


def _called(invitation: Invitation) -> str:
    return f"invitation of client {invitation.client} to round {invitation.round_id}"


def _check_table(invitation: Invitation, table: TensorTable) -> None:
    if invitation.tensors_sha256 not in (None, in_file_order(table).sha256):
        raise TensorTableMismatch(
            f"client {invitation.client}: the update's tensors are not those of model {invitation.model}: other names, "
            f"shapes or dtypes. Submit the state_dict of the model that round {invitation.round_id} averages.",
            client=invitation.client,
        )


def _put(invitation: Invitation, file: IO[bytes]) -> Answer:
    """Upload the update; returns the first error response, or the last response."""
    if invitation.parts is not None:
        return _put_parts(invitation.parts, file, invitation.size)
    assert invitation.put_url is not None
    return ask("PUT", invitation.put_url, FilePart(file, 0, invitation.size), {"If-None-Match": "*"})


def _put_parts(parts: Parts, file: IO[bytes], size: int) -> Answer:
    etags = []
    for i, url in enumerate(parts.urls):
        start = i * parts.part_bytes
        answer = ask("PUT", url, FilePart(file, start, min(parts.part_bytes, size - start)))
        if not answer.ok:
            return answer
        etags.append(answer.headers["ETag"])
    listed = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag, quote=False)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    # S3's API reference, CompleteMultipartUpload.
    body = (
        f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listed}</CompleteMultipartUpload>'
    )
    answer = ask("POST", parts.complete_url, body.encode(), {"If-None-Match": "*"})
    if answer.code == "PreconditionFailed":
        # The upload can no longer be completed. After any other failure the invitation can be used again.
        ask("DELETE", parts.abort_url)
    return answer


def _range(invitation: Invitation) -> dict[str, str]:
    return {"Range": f"bytes=0-{invitation.header_bytes - 1}"}


def _is_stored(invitation: Invitation, update: WrittenUpdate) -> bool:
    """Whether this update is stored: its header is compared, which contains the SHA-256 of the values."""
    with stream("GET", invitation.stored_url, headers=_range(invitation)) as response:
        return response.status == 206 and response.read(invitation.header_bytes) == update.header


def _explained(answer: Answer, invitation: Invitation) -> OrchestratorError:
    """The error that tells the invited client what an error response means."""
    said = f"S3 answered {answer.status} {answer.code}" + (f": {answer.message}" if answer.message else "")
    message = answer.message.lower()
    if answer.code == "AccessDenied" and "expired" in message:
        return expired(invitation)
    if answer.code in _ENDED_CREDENTIALS:
        why = "has ended: the credentials that signed it have expired or were revoked. Ask for a new one."
    elif answer.code == "AccessDenied" and "not yet valid" in message:
        why = "is not valid yet: it was made on a machine whose clock is wrong. Ask for a new one."
    elif answer.code in _BAD_SIGNATURE:
        why = "was altered after it was signed. Use the file as you received it, or ask for a new one."
    elif answer.status == 403:
        why = "is not accepted: its signer does not have the permission, or no longer has it. Ask for a new one."
    elif answer.code == "NoSuchBucket":
        why = "is for an environment that was destroyed."
    else:
        return OrchestratorError(f"The {_called(invitation)} could not be used: {said}. Try again.")
    return UnusableInvitation(f"The {_called(invitation)} {why} ({said})")
