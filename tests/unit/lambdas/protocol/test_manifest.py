"""The manifest: its stored bytes, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lambdas.protocol.documents import sha256_hex
from lambdas.protocol.errors import InvalidContract
from lambdas.protocol.manifest import Output, Participant, RoundManifest
from lambdas.protocol.tensor_table import TensorSpec, TensorTable
from tests.support.examples import DIGEST, MANIFEST_JSON, a_manifest


def test_a_manifests_json_is_pinned_literally() -> None:
    assert a_manifest().to_bytes().decode() == MANIFEST_JSON
    assert RoundManifest.from_bytes(MANIFEST_JSON.encode()) == a_manifest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors_sha256": "0" * 64}, "tensors_sha256 does not match"),
        ({"participants": []}, "0 participants; expected 1 to"),
        ({"bounds": [0, 5, 11]}, "do not cover the 12 values exactly once"),
        ({"bounds": [1, 5, 12]}, "do not cover"),
        ({"bounds": [0, 7, 5, 12]}, "do not cover"),
        ({"bounds": [0]}, "0 shards"),
        ({"revision": -1}, "revision"),
        ({"norms": "nowhere"}, "norms"),
        (
            {"excluded": [{"client": "a", "kind": "k", "reason": "r"}]},
            "excluded clients are not in ascending client id, or also participate",
        ),
        ({"excluded": [{"client": c, "kind": "k", "reason": "r"} for c in "dc"]}, "not in ascending client id"),
        ({"excluded": [{"client": "c", "kind": "k"}]}, "reason"),
        ({"bounds": [0, True, 12]}, r"field 'bounds\[1\]': expected an integer, found True"),
        ({"layouts": [["F32", "BF16"], ["F16", "BF16"]]}, "layouts: expected one dtype for each of the tensors"),
        (
            {"layouts": [["F32", "BF16", ["I64"]], ["F16", "BF16", "I64"]]},
            r"'layouts\[0\]\[2\]': expected one of F64, .*, found \['I64'\]",
        ),
        ({"layouts": [["F32", "BF16", "I64"]]}, "client b: layout 1 of 1 layouts"),
        ({"output": {"kind": "objects", "key": "models/digits/r-1/global.safetensors", "upload_id": "x"}}, "upload_id"),
        ({"output": {"kind": "multipart", "key": "models/digits/r-1/global.safetensors"}}, "upload_id"),
        (
            {"output": {"kind": "objects", "key": "models/other/r-1/global.safetensors"}},
            "is not the key of the",
        ),
        ({"created_at": 10**400}, "expected a finite number"),
        ({"created_at": None}, "field 'created_at': expected a finite number, found None"),
        ({"topology": "star"}, "'topology': expected one of grads-sharding, lambda-fl, lifl, found 'star'"),
        ({"topology": "lifl"}, "2 shards, but lifl averages whole models"),
        ({"schema": 1}, "schema is 1, this version reads 2.*Deploy and run the same release"),
        ({"round_id": "a/b"}, "Manifest: field 'round_id': expected a round of 1 to 128 letters, .*, found 'a/b'"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_and_the_field_is_named(change: Any, message: str) -> None:
    document = {**json.loads(MANIFEST_JSON), **change}
    with pytest.raises(InvalidContract, match=message):
        RoundManifest.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 141}, "client a: 141 bytes, but header and tensors take 142"),
        ({"key": "rounds/r-1/updates/b.safetensors"}, "is not the key of its update"),
        ({"key": "models/digits/a.safetensors"}, "is not the key of its update"),
        ({"client": "z"}, "not in ascending client id"),
        (
            {"num_examples": 0},
            r"^Manifest of round r-1: field 'participants\[0\].num_examples': expected .* to 1000000000, found 0\.$",
        ),
        ({"num_examples": 10**9 + 1}, "num_examples"),
        ({"num_examples": True}, "num_examples"),
        ({"num_examples": 1.0}, "num_examples"),
        ({"data_offset": 7}, "data_offset"),
    ],
)
def test_a_participant_that_contradicts_itself_is_refused(change: Any, message: str) -> None:
    document = json.loads(MANIFEST_JSON)
    document["participants"][0] |= change
    with pytest.raises(InvalidContract, match=message):
        RoundManifest.from_bytes(json.dumps(document).encode())


def test_a_manifest_that_claims_two_to_the_sixty_values_is_refused() -> None:
    table = TensorTable((TensorSpec("w", "F32", (2**60,)),))
    participant = Participant("a", "rounds/r-1/updates/a.safetensors", '"e"', 100 + table.nbytes, 100, 3, DIGEST)
    manifest = a_manifest(table=table, participants=(participant,), layouts=(("F32",),), bounds=(0, table.elements))
    with pytest.raises(InvalidContract, match="a shard has more than 5368709120 bytes, the limit of a part"):
        RoundManifest.from_bytes(manifest.to_bytes())


def test_the_manifest_digest_covers_every_field() -> None:
    changed = [
        a_manifest(created_at=1.0),
        a_manifest(bounds=(0, 12)),
        a_manifest(output=Output("multipart", "models/digits/r-1/global.safetensors", "upload-8")),
        a_manifest(participants=a_manifest().participants[:1]),
    ]
    assert len({sha256_hex(m.to_bytes()) for m in [a_manifest(), *changed]}) == 5
