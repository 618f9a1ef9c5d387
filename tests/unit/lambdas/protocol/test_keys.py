"""Names, and the keys that are made of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdas.protocol.errors import InvalidName
from lambdas.protocol.keys import (
    check_name,
    client_of,
    coordinator_key,
    global_key,
    latest_key,
    manifest_key,
    report_key,
    round_key,
    shard_key,
    update_key,
    updates_prefix,
)


def test_keys_are_pinned_literally() -> None:
    assert round_key("r-1") == "rounds/r-1/round.json"
    assert update_key("r-1", "hospital-7") == "rounds/r-1/updates/hospital-7.safetensors"
    assert manifest_key("r-1") == "rounds/r-1/manifest.json"
    assert coordinator_key("r-1") == "rounds/r-1/coordinator.json"
    assert report_key("r-1") == "rounds/r-1/report.json"
    assert shard_key("r-1", 3, 16) == "rounds/r-1/shards/r0/00003-of-00016"
    assert global_key("digits", "r-1") == "models/digits/r-1/global.safetensors"
    assert latest_key("digits") == "models/digits/latest.json"


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "..", ".", "a.b", "../up", "a b", "ümlaut", "名前", "-a", "_a", "a\n", "a" * 129, "a" * 300, "a\x00b"],
)  # fmt: skip
def test_a_name_that_cannot_be_part_of_a_key_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(InvalidName, match=r"1 to 128 letters, digits, '-' or '_'.*Choose another client id"):
        check_name("client id", name)
    for key in (lambda: update_key("r-1", name), lambda: update_key(name, "a"), lambda: global_key(name, "r-1")):
        with pytest.raises(InvalidName):
            key()


def test_the_error_of_a_very_long_name_stays_short() -> None:
    with pytest.raises(InvalidName) as caught:
        check_name("client id", "a" * 100_000)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"]])
def test_a_name_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(InvalidName):
        check_name("round", value)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", fullmatch=True))
def test_every_allowed_client_id_is_found_again_in_its_key(client: str) -> None:
    assert client_of(update_key("r-1", client)) == client
    assert update_key("r-1", client).startswith(updates_prefix("r-1"))


@pytest.mark.parametrize("key", ["rounds/r-1/updates/a", "rounds/r-1/updates/a.txt", "rounds/r-1/updates/.safetensors"])
def test_an_object_that_is_no_update_has_no_client(key: str) -> None:
    with pytest.raises(InvalidName):
        client_of(key)
