"""Invitations: a client submits and fetches with presigned requests only, and every misuse is a clear error.

The emulator checks the signatures and the life of presigned requests as S3 does; what it cannot answer is served here.
"""

from __future__ import annotations

import dataclasses
import io
import json
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdas.protocol.errors import InvalidName, TensorTableMismatch
from lambdas.protocol.keys import manifest_key, update_key
from lambdas.protocol.limits import MAX_EXAMPLES
from lambdas.protocol.safetensors import header_length, parse_update_header
from orchestrator.aws import clients as clients_module
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.client import api, invitation, invite, redeem
from orchestrator.client.api import Client
from orchestrator.client.invitation import Invitation, UnusableInvitation, load_invitation, parse_invitation
from orchestrator.client.invite import prepare, size_of_bytes, update_size
from orchestrator.client.presigned import Answer, ask
from orchestrator.client.redeem import fetch_invited, submit_invited
from orchestrator.client.signing import early_end
from orchestrator.client.sources import from_state_dict
from orchestrator.client.update_file import write_update
from orchestrator.deployment import load
from orchestrator.errors import BadInput, OrchestratorError, RoundConflict
from orchestrator.rounds.request import RoundRequest, open_round
from orchestrator.rounds.start import start_round
from tests.support.commands import error_of, run
from tests.support.rounds import weights, working
from tests.support.servers import RangeServer, error


def tensors(seed: int = 1) -> Any:
    return from_state_dict(weights(seed))


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for AWS credentials or for an environment fails the test."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an invited client needs neither boto3 nor an environment")

    for module, name in (
        (clients_module.boto3.session, "Session"),
        (clients_module, "LocalStackSession"),
        (api, "load_deployment"),
    ):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(load, "load_deployment", fail)


@pytest.fixture
def make(aws: AwsClients, lanes_without_functions: Deployment) -> Callable[..., Invitation]:
    """Makes invitations to rounds of a model that has no global model yet."""

    def make(client: str = "a", round_id: str = "r-1", expires_s: float = 600, **options: Any) -> Invitation:
        options.setdefault("table", tensors().table)
        inviting = prepare(aws.bucket(lanes_without_functions.bucket), round_id, model="digits", **options)
        return invite.invite(aws.bucket(lanes_without_functions.bucket), inviting, client, expires_s)

    return make


@pytest.fixture
def stored(aws: AwsClients, lanes_without_functions: Deployment) -> Callable[[str], bytes]:
    def read(key: str) -> bytes:
        return aws.s3.get_object(Bucket=lanes_without_functions.bucket, Key=key)["Body"].read()

    return read


# --- sizes ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, MAX_EXAMPLES), st.sampled_from([None, "BF16", "F16"]), st.integers(1, 5))
def test_every_update_of_a_model_meets_the_size_and_both_parsers_read_it(
    examples: int, wire: str | None, rows: int
) -> None:
    state = {"w": np.ones((rows, 7), np.float32), "é": np.ones(3, np.float64), "n": np.array(4)}
    size = update_size(from_state_dict(state).table, wire)
    file = io.BytesIO()
    written = write_update(from_state_dict(state), examples, file, wire=wire, size=size.nbytes)
    data = file.getvalue()
    assert len(data) == written.nbytes == size.nbytes
    assert len(written.header) == size.header_bytes
    assert size.header_bytes % 8 == 0, "the values stay aligned"
    header = parse_update_header(data[8 : 8 + header_length(data, len(data))], len(data))
    assert header.num_examples == examples
    if wire != "BF16":  # numpy has no bfloat16
        loaded = safetensors.numpy.load(data)
        assert all(np.array_equal(loaded[name], value) for name, value in state.items())


def test_an_update_of_another_size_is_refused_before_anything_is_sent(make: Callable[..., Invitation]) -> None:
    invitation = make(table=None, model_bytes=sum(v.nbytes for v in weights(1).values()))
    larger = {**weights(1), "more": np.zeros(100_000, np.float32)}
    with pytest.raises(BadInput, match=r"The update has [\d,]+ bytes, the invitation is for [\d,]+: it has"):
        submit_invited(invitation, from_state_dict(larger), 1)


def test_where_only_bytes_are_known_the_header_has_room() -> None:
    for nbytes in (1, 1000, 10**9):
        size = size_of_bytes(nbytes)
        assert size.nbytes == size.header_bytes + nbytes
        assert size.header_bytes >= 64 * 1024 + nbytes / 1000
        assert size.header_bytes % 8 == 0


# --- submitting ----------------------------------------------------------------------------------------------------


def test_an_invited_client_submits_and_fetches_without_aws(
    aws: AwsClients, lanes_without_functions: Deployment, make: Callable[..., Invitation], no_aws: None, tmp_path: Path
) -> None:
    texts = {name: make(name).to_json() for name in ("a", "b")}
    members = {name: Client(name, model="digits") for name in texts}
    for seed, (name, member) in enumerate(members.items()):
        assert member.push(weights(seed), num_examples=seed + 1, invite=texts[name]).created
        with pytest.raises(BadInput, match="Model digits has no global model yet: round r-1 is its first"):
            member.pull(invite=texts[name])
    with working(aws, lanes_without_functions, 1):
        start_round(aws, lanes_without_functions, RoundRequest("digits", "r-1", 1, min_clients=2, timeout_s=30.0))
    expected = (weights(0)["layer.weight"].astype(np.float64) + 2 * weights(1)["layer.weight"].astype(np.float64)) / 3
    pulled = members["a"].pull(invite=texts["a"])
    assert np.array_equal(pulled["layer.weight"].numpy(), expected.astype(np.float32))

    # The next round: size and base follow from the global model.
    inviting = prepare(aws.bucket(lanes_without_functions.bucket), "r-2", model="digits")
    second = invite.invite(aws.bucket(lanes_without_functions.bucket), inviting, "a", 600)
    assert (second.base_round, second.tensors_sha256 is not None) == ("r-1", True)
    (tmp_path / "second.json").write_text(second.to_json())
    assert np.array_equal(members["a"].pull(invite=tmp_path / "second.json")["layer.weight"], pulled["layer.weight"])
    assert fetch_invited(second, tmp_path / "base", round_id="r-1").round_id == "r-1"
    with pytest.raises(BadInput, match="Round r-2 has published no global model of digits; the invitation is for r-2"):
        fetch_invited(second, tmp_path / "result", round_id="r-2")
    assert members["a"].push(weights(5), num_examples=9, invite=json.loads(second.to_json())).created
    with pytest.raises(TensorTableMismatch, match="client a: the update's tensors are not those of model digits"):
        submit_invited(second, from_state_dict({"layer.weight": np.zeros(3, np.float32)}), 1)


@pytest.mark.parametrize("in_parts", [False, True])
def test_an_invitation_is_for_one_update(
    make: Callable[..., Invitation], stored: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:
    if in_parts:
        monkeypatch.setattr(invite, "MULTIPART_ABOVE", 100)
        monkeypatch.setattr(invite, "PART_BYTES", 700)
    first, second = make(), make()
    assert (first.parts is not None) == in_parts
    assert submit_invited(first, tensors(1), 5).created
    data = stored(update_key("r-1", "a"))
    assert len(data) == first.size
    again = submit_invited(first, tensors(1), 5)
    assert not again.created, "the very same update: nothing changes"
    for other in (first, second):
        with pytest.raises(RoundConflict, match="Client a has already submitted another update to round r-1"):
            submit_invited(other, tensors(2), 5)
    assert stored(update_key("r-1", "a")) == data


def test_parts_that_were_cleared_away_are_not_taken_for_a_replay(
    aws: AwsClients, lanes_without_functions: Deployment, make: Callable[..., Invitation], monkeypatch: Any
) -> None:
    monkeypatch.setattr(invite, "MULTIPART_ABOVE", 100)
    invitation = make()
    for upload in aws.s3.list_multipart_uploads(Bucket=lanes_without_functions.bucket)["Uploads"]:
        aws.s3.abort_multipart_upload(
            Bucket=lanes_without_functions.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
        )
    with pytest.raises(UnusableInvitation, match="was deleted, and no update is stored"):
        submit_invited(invitation, tensors(), 1)


def test_a_large_update_has_few_parts_and_each_has_its_length(make: Callable[..., Invitation], aws: AwsClients) -> None:
    gib = 1024**3
    parts = make(table=None, model_bytes=40 * gib).parts
    assert parts is not None
    assert len(parts.urls) == 32
    assert all("content-length" in url for url in parts.urls)
    assert "if-none-match" in parts.complete_url
    huge = make(table=None, model_bytes=1000 * gib).parts
    assert huge is not None
    assert huge.part_bytes == 5 * gib, "S3's largest part"


def test_a_closed_round_takes_no_more_updates(
    aws: AwsClients, lanes_without_functions: Deployment, make: Callable[..., Invitation]
) -> None:
    first, late = make("a"), make("late")
    submit_invited(first, tensors(), 1)
    with working(aws, lanes_without_functions, 1):
        start_round(aws, lanes_without_functions, RoundRequest("digits", "r-1", 1, timeout_s=30.0))
    assert not submit_invited(first, tensors(), 1).created
    with pytest.raises(RoundConflict, match="Round r-1 is closed"):
        submit_invited(late, tensors(), 1)
    with pytest.raises(RoundConflict, match=r"Round r-1 is closed: its updates are pinned\. Invite to the next round"):
        make("b")


@pytest.mark.parametrize("wire", ["BF16", "F16"])
def test_an_invitation_may_ask_for_a_wire_dtype(
    make: Callable[..., Invitation], stored: Callable[[str], bytes], wire: str
) -> None:
    invitation = make(wire=wire)
    full = make("b")
    assert invitation.size - invitation.header_bytes < full.size - full.header_bytes
    submit_invited(invitation, tensors(), 3)
    data = stored(invitation.key)
    header = parse_update_header(data[8 : 8 + header_length(data, len(data))], len(data))
    assert "F32" not in header.dtypes
    assert wire in header.dtypes
    with pytest.raises(BadInput, match="The invitation is for wire dtype none, not F16"):
        Client("b", model="digits").push(weights(1), 1, invite=make("b").to_json(), wire="float16")


# --- misuse --------------------------------------------------------------------------------------------------------


def refused(invitation: Invitation, method: str, url: str, **request: Any) -> Answer:
    answer = ask(method, url, **request)
    assert not answer.ok
    return answer


def test_an_expired_invitation_says_so_by_the_clients_clock_and_by_s3s(make: Callable[..., Invitation]) -> None:
    invitation = make(expires_s=1)
    time.sleep(1.2)
    with pytest.raises(UnusableInvitation, match=r"of client a to round r-1 has expired: it was valid until .* UTC"):
        submit_invited(invitation, tensors(), 1)  # within the tolerated skew, so S3 says it
    with pytest.raises(UnusableInvitation, match="has expired"):
        fetch_invited(invitation, Path("never"))
    old = replace(invitation, expires_at=time.time() - 3600, closed_url="http://127.0.0.1:9/never-asked")
    with pytest.raises(UnusableInvitation, match="has expired"):
        submit_invited(old, tensors(), 1)


def test_an_altered_invitation_says_so(make: Callable[..., Invitation]) -> None:
    invitation, other = make("a"), make("b")
    text = invitation.to_json()
    for changed in (
        text.replace('"client":"a"', '"client":"b"'),
        text.replace(f'"size":{invitation.size}', f'"size":{invitation.size + 8}'),
        text[:-40] + "}",
        text[: len(text) // 2],
        "[]",
        '{"schema": 9}',
        text.replace('"kind":"invitation"', '"kind":"manifest"'),
    ):
        with pytest.raises(UnusableInvitation, match="It is not an invitation from `orchestrator invite`, or it"):
            parse_invitation(changed)
    # Whoever alters it with care can make the digest right, and gets past neither the keys nor S3.
    assert other.put_url is not None
    with pytest.raises(UnusableInvitation, match="for another object than"):
        parse_invitation(replace(invitation, put_url=other.put_url).to_json())
    larger = replace(invitation, size=invitation.size + 8, header_bytes=invitation.header_bytes + 8)
    with pytest.raises(UnusableInvitation, match=r"was altered after it was signed.*SignatureDoesNotMatch"):
        submit_invited(parse_invitation(larger.to_json()), tensors(), 1)


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"\\ud800"'])
def test_an_invitation_that_has_no_digest_at_all_is_refused(make: Callable[..., Invitation], value: str) -> None:
    with pytest.raises(UnusableInvitation, match=r"does not match its digest|is not a JSON number"):
        parse_invitation(make().to_json().replace('"base_url":null', f'"base_url":{value}'))


def test_an_invitation_until_the_end_of_time_expires_in_a_sentence(make: Callable[..., Invitation]) -> None:
    assert "valid until 9999-12-31" in str(invitation.expired(replace(make(), expires_at=1e300)))
    assert "valid until 1970-01-01" in str(invitation.expired(replace(make(), expires_at=-1e300)))


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(BadInput, match=r"Cannot read the invitation 'no\\x00file'"):
        load_invitation("no\0file")


def test_an_invitation_never_leads_to_another_host_or_without_tls(make: Callable[..., Invitation]) -> None:
    invitation = make()
    assert invitation.put_url is not None
    elsewhere = replace(invitation, put_url=invitation.put_url.replace("127.0.0.1", "localhost"))
    with pytest.raises(UnusableInvitation, match="its URLs lead to different hosts"):
        parse_invitation(elsewhere.to_json())
    urls = {f.name: getattr(invitation, f.name) for f in dataclasses.fields(invitation) if f.name.endswith("_url")}
    plain = {name: url.replace("127.0.0.1", "example.com") for name, url in urls.items() if url}
    with pytest.raises(UnusableInvitation, match="expected https URLs"):
        parse_invitation(replace(invitation, **plain).to_json())


def test_a_leaked_invitation_opens_nothing_else(
    make: Callable[..., Invitation],
) -> None:
    mine, theirs = make("a"), make("b")
    submit_invited(theirs, tensors(), 1)
    assert mine.put_url is not None
    for url in mine.urls():
        assert ask("DELETE", url).code == "SignatureDoesNotMatch"
        assert ask("PUT", url, b"other", {"If-None-Match": "*"}).code == "SignatureDoesNotMatch"
    for url in (mine.stored_url, mine.put_url):
        assert ask("GET", url.replace(mine.key, theirs.key)).code == "SignatureDoesNotMatch"
    whole = theirs.stored_url
    assert ask("GET", whole).code == "SignatureDoesNotMatch", "without the Range: the values stay unread"
    assert ask("GET", whole, headers={"Range": "bytes=0-999999"}).code == "SignatureDoesNotMatch"
    body = b"x" * mine.size
    unconditional = ask("PUT", mine.put_url, body)
    assert unconditional.code == "SignatureDoesNotMatch", "without If-None-Match"
    assert ask("PUT", mine.put_url, body + b"x", {"If-None-Match": "*"}).code == "SignatureDoesNotMatch"
    assert ask("PUT", mine.put_url, body[:-1], {"If-None-Match": "*"}).code == "SignatureDoesNotMatch"
    assert ask("PUT", mine.put_url, body, {"If-None-Match": "*"}).ok


@pytest.fixture
def s3_says() -> Iterator[RangeServer]:
    with RangeServer() as server:
        yield server


@pytest.mark.parametrize(
    ("status", "code", "message", "expected", "sentence"),
    [
        ("403 Forbidden", "AccessDenied", "Request has expired", UnusableInvitation, "has expired"),
        ("400 Bad Request", "ExpiredToken", "The provided token has expired.", UnusableInvitation, "credentials that"),
        ("403 Forbidden", "InvalidAccessKeyId", "", UnusableInvitation, "credentials that signed it have expired or"),
        ("403 Forbidden", "SignatureDoesNotMatch", "", UnusableInvitation, "was altered after it was signed"),
        ("403 Forbidden", "AccessDenied", "Request is not yet valid", UnusableInvitation, "is not valid yet"),
        ("403 Forbidden", "AccessDenied", "Access Denied", UnusableInvitation, "does not have the permission"),
        ("404 Not Found", "NoSuchBucket", "", UnusableInvitation, "an environment that was destroyed"),
        ("412 Precondition Failed", "PreconditionFailed", "", RoundConflict, "already submitted another update"),
        ("409 Conflict", "ConditionalRequestConflict", "", RoundConflict, "already submitted another update"),
        (
            "400 Bad Request",
            "IncompleteBody",
            "",
            OrchestratorError,
            "could not be used: S3 answered 400",
        ),
    ],
)
def test_what_s3_answers_is_said_in_the_clients_words(
    make: Callable[..., Invitation], s3_says: RangeServer, status: str, code: str, message: str, expected: Any,
    sentence: str,
) -> None:  # fmt: skip
    body = f"<Error><Code>{code}</Code><Message>{message}</Message><Signature>geheim</Signature></Error>".encode()
    invitation = make()
    urls = {
        f.name: s3_says.url + "/bucket/" + f.name + "?X-Amz-Signature=geheim"
        for f in dataclasses.fields(invitation)
        if f.name.endswith("_url") and getattr(invitation, f.name)
    }
    missing = error("404 Not Found", "NoSuchKey")

    def refuse(handler: Any, request: Any) -> bool:
        handler.rfile.read(int(request.headers["content-length"]))
        return bool(handler.reply(status, body))

    s3_says.script += [error("404 Not Found", "", b""), refuse, missing, missing]
    with pytest.raises(expected, match=sentence) as caught:
        submit_invited(replace(invitation, **urls), tensors(), 1)
    assert "geheim" not in str(caught.value)


def test_nobody_answers_is_told_without_the_url(make: Callable[..., Invitation], monkeypatch: Any) -> None:
    monkeypatch.setattr("orchestrator.client.presigned._RETRIES", urllib3.Retry(total=0))
    dead = replace(make(), closed_url="http://127.0.0.1:9/x?X-Amz-Signature=geheim")
    redeem.ask.__globals__["_pool"].cache_clear()
    with pytest.raises(OrchestratorError, match=r"127\.0\.0\.1 cannot be reached") as caught:
        submit_invited(dead, tensors(), 1)
    redeem.ask.__globals__["_pool"].cache_clear()
    assert "geheim" not in str(caught.value)


# --- who signs -----------------------------------------------------------------------------------------------------


class _Credentials:
    def __init__(self, token: str | None, minutes: float | None) -> None:
        self.token = token
        if minutes is not None:
            import datetime

            self._expiry_time = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)

    def get_frozen_credentials(self) -> _Credentials:
        return self


def signed_by(aws: AwsClients, monkeypatch: pytest.MonkeyPatch, credentials: _Credentials) -> Any:
    monkeypatch.setattr(aws.s3._request_signer, "_credentials", credentials)  # type: ignore[attr-defined]
    return aws.s3


def test_credentials_that_end_early_are_told(aws: AwsClients, monkeypatch: pytest.MonkeyPatch) -> None:
    assert early_end(aws.s3, 600) is None
    assert early_end(signed_by(aws, monkeypatch, _Credentials("token", 30)), 600) is None
    early = early_end(signed_by(aws, monkeypatch, _Credentials("token", 5.1)), 3600)
    assert early is not None
    assert "These invitations end in 5 minutes, with the temporary credentials that sign them, and not in 60" in early
    unknown = early_end(signed_by(aws, monkeypatch, _Credentials("token", None)), 600)
    assert unknown is not None
    assert "temporary credentials that expire at an unknown time" in unknown


# --- making them ---------------------------------------------------------------------------------------------------


def test_an_invitation_needs_to_know_model_and_size(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    bucket = lanes_without_functions.bucket
    with pytest.raises(BadInput, match=r"Round r-1 is not open yet, so its model is not known. Add --model"):
        prepare(aws.bucket(bucket), "r-1")
    with pytest.raises(BadInput, match=r"Model digits has no global model yet.*Add --like FILE.*or --model-bytes"):
        prepare(aws.bucket(bucket), "r-1", model="digits")
    inviting = prepare(aws.bucket(bucket), "r-1", model="digits", model_bytes=100)
    with pytest.raises(InvalidName):
        invite.invite(aws.bucket(bucket), inviting, "../b", 60)
    for life in (0, 7 * 24 * 3600 + 1):
        with pytest.raises(BadInput, match="An invitation lives from 1 second to 7 days"):
            invite.invite(aws.bucket(bucket), inviting, "a", life)


def test_only_its_own_client_uses_an_invitation(make: Callable[..., Invitation]) -> None:
    text = make("a").to_json()
    with pytest.raises(BadInput, match="The invitation is for client a, not b"):
        Client("b", model="digits").push(weights(1), 1, invite=text)
    with pytest.raises(BadInput, match="The invitation is for model digits, not other"):
        Client("a", model="other").pull(invite=text)
    with pytest.raises(BadInput, match="The invitation is for round r-1, not r-2"):
        Client("a", model="digits").push(weights(1), 1, invite=text, round_id="r-2")
    with pytest.raises(BadInput, match="Name the round"):
        Client("a", model="digits").push(weights(1), 1)


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def deployed(lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.setattr(load, "load_deployment", lambda environment: lanes_without_functions)
    return lanes_without_functions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    safetensors.numpy.save_file(weights(1), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_invite_prints_an_invitation_that_submit_and_fetch_take(
    aws: AwsClients, deployed: Deployment, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = run("invite", "--round", "r-1", "--client", "a", "--model", "digits", "--like", model).stdout
    assert printed.count("\n") == 1, "one line"
    (tmp_path / "a.json").write_text(printed)
    monkeypatch.setattr(load, "load_deployment", lambda environment: pytest.fail("no environment is needed"))
    told = run("submit", model, "--invite", tmp_path / "a.json", "--examples", "7").stdout
    assert "Client a's update of" in told
    assert "is in round r-1." in told
    again = json.loads(
        run("submit", model, "--invite", tmp_path / "a.json", "--examples", "7", "--output", "json").stdout
    )
    assert not again["created"]
    replayed = run("submit", model, "--invite", tmp_path / "a.json", "--examples", "8", "--output", "json", ok=False)
    assert replayed.exit_code == 6
    with working(aws, deployed, 1):
        start_round(aws, deployed, RoundRequest("digits", "r-1", 1, timeout_s=30.0))
    run("fetch", "--invite", tmp_path / "a.json", "--to", tmp_path / "global.safetensors")
    assert np.array_equal(
        safetensors.numpy.load_file(tmp_path / "global.safetensors")["layer.weight"], weights(1)["layer.weight"]
    )


def test_invitations_for_several_clients_are_files_for_their_owners_eyes(
    deployed: Deployment, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "clients.txt").write_text("a\n\nb\na\n")
    made = json.loads(
        run(
            "invite", "--round=r-1", "--clients", tmp_path / "clients.txt", "--client", "c", "--model", "digits",
            "--like", model, "--out", tmp_path / "out", "--expires", "90m", "--output", "json",
        ).stdout
    )  # fmt: skip
    assert set(made["files"]) == {"a", "b", "c"}
    for name, file in made["files"].items():
        assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
        invitation = load_invitation(file)
        assert invitation.client == name
        assert invitation.expires_at - invitation.issued_at == pytest.approx(5400)
        assert Path(file).stat().st_size < 10_000


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (["--client", "b"], 2, "The invitation is for client a, not b"),
        (["--round", "r-9"], 2, "The invitation is for round r-1, not r-9"),
        (["--wire", "float16"], 2, "The invitation is for wire dtype none, not F16"),
    ],
)
def test_an_invitation_for_something_else_is_refused(
    deployed: Deployment, model: Path, tmp_path: Path, change: list[str], status: int, message: str
) -> None:
    run("invite", "--round=r-1", "--client=a", "--model=digits", "--like", model, "--out", tmp_path / "a.json")
    result = run(
        "submit", model, "--invite", tmp_path / "a.json", "--examples", "1", "--output", "json", *change, ok=False
    )
    assert result.exit_code == status
    assert message in error_of(result)["message"]


def test_a_file_that_is_no_invitation_exits_with_2(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    for name in ("notes.json", "missing.json"):
        result = run("submit", model, "--invite", tmp_path / name, "--examples", "1", "--output", "json", ok=False)
        assert result.exit_code == 2


def test_documents_of_a_manifests_kind_are_no_invitations() -> None:
    assert invitation.SCHEMA == 1
    with pytest.raises(UnusableInvitation):
        load_invitation({"schema": 1, "kind": "invitation", "key": manifest_key("r-1")})


def test_a_round_that_names_its_clients_invites_them_and_nobody_else(
    aws: AwsClients, deployed: Deployment, model: Path, tmp_path: Path
) -> None:
    open_round(aws.bucket(deployed.bucket), RoundRequest("digits", "r-1", expect_clients=("a", "b")))
    made = json.loads(run("invite", "--round=r-1", "--like", model, "--out", tmp_path / "out/", "--output=json").stdout)
    assert set(made["files"]) == {"a", "b"}
    result = run("invite", "--round=r-1", "--client=c", "--like", model, "--output=json", ok=False)
    assert (result.exit_code, "Client c is not among the 2 clients" in error_of(result)["message"]) == (2, True)
    nobody = run("invite", "--round=r-2", "--model=digits", "--like", model, ok=False)
    assert nobody.exit_code == 2
