"""Names, and the object keys that are made of them. Standard library only."""

from __future__ import annotations

import re

from lambdas.protocol.errors import InvalidName, shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")


def check_name(kind: str, value: str) -> str:
    """Return `value` if it can be a client, round or model name, else raise InvalidName.

    Names become parts of object keys, so they are kept to 1-128 letters, digits, `-` and `_`, and start with a
    letter or digit: no slashes, no dots, nothing that a shell or a URL would have to escape.
    """
    if not isinstance(value, str) or not _NAME.match(value):
        raise InvalidName(
            f"{shown(value)} is no valid {kind}: expected 1 to 128 letters, digits, '-' or '_', starting with a letter "
            f"or digit. Choose another {kind}."
        )
    return value


UPDATE_SUFFIX = ".safetensors"


def rounds_prefix() -> str:
    """Prefix of every round's working objects."""
    return "rounds/"


def round_prefix(round_id: str) -> str:
    """Prefix of one round's working objects; a directory listing of `rounds_prefix()` yields these."""
    return f"rounds/{check_name('round', round_id)}/"


def round_key(round_id: str) -> str:
    """Key of the round record, written once when the round is opened."""
    return round_prefix(round_id) + "round.json"


def updates_prefix(round_id: str) -> str:
    """Prefix of the round's client updates."""
    return round_prefix(round_id) + "updates/"


def update_key(round_id: str, client: str) -> str:
    """Key of one client's update."""
    return updates_prefix(round_id) + check_name("client id", client) + UPDATE_SUFFIX


def client_of(key: str) -> str:
    """The client id in an update's key; InvalidName where the key is not an update's."""
    name = key.rsplit("/", 1)[-1]
    if not name.endswith(UPDATE_SUFFIX):
        raise InvalidName(f"{shown(key)} is no update: expected rounds/<round>/updates/<client>{UPDATE_SUFFIX}.")
    return check_name("client id", name.removesuffix(UPDATE_SUFFIX))


def manifest_key(round_id: str) -> str:
    """Key of the manifest that freezes the round."""
    return round_prefix(round_id) + "manifest.json"


def shards_prefix(round_id: str) -> str:
    """Prefix of the shard objects (where shards are too small to be parts of a multipart upload)."""
    return round_prefix(round_id) + "shards/"


def shard_key(round_id: str, shard: int, shards: int, revision: int = 0) -> str:
    """Key of one shard object; M and the manifest's revision are part of it: a round planned anew never mixes."""
    return shards_prefix(round_id) + f"r{revision}/{shard:05d}-of-{shards:05d}"


def norms_key(round_id: str, shard: int, shards: int, revision: int) -> str:
    """Key of the clients' sums of squares over one shard, where the manifest wants them in S3 (`Norms`)."""
    return round_prefix(round_id) + f"norms/r{revision}/{shard:05d}-of-{shards:05d}"


def partials_prefix(round_id: str) -> str:
    """Prefix of the partial sums that a tree's aggregators hand on."""
    return round_prefix(round_id) + "partials/"


def partial_key(round_id: str, manifest_sha256: str, level: int, aggregator: int) -> str:
    """Key of one aggregator's partial sum; the manifest is part of it: a round that is planned anew never mixes."""
    return partials_prefix(round_id) + f"{manifest_sha256[:16]}/level-{level}/{aggregator:05d}{UPDATE_SUFFIX}"


def report_key(round_id: str) -> str:
    """Key of the round's report."""
    return round_prefix(round_id) + "report.json"


def global_key(model: str, round_id: str) -> str:
    """Key of the global model that a round publishes."""
    return f"models/{check_name('model', model)}/{check_name('round', round_id)}/global.safetensors"


def latest_key(model: str) -> str:
    """Key of the pointer to a model's newest global model."""
    return f"models/{check_name('model', model)}/latest.json"
