"""Client, round and model names, and the keys of every object in the bucket, which are made of them."""

from __future__ import annotations

import re

from lambdas.protocol.errors import InvalidName, shown

# Names become parts of object keys: no slashes, no dots, nothing that a shell or a URL would have to escape.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")
NAME_FORM = "1 to 128 letters, digits, '-' or '_', starting with a letter or digit"


def is_name(value: object) -> bool:
    """Whether a value can be a client, round or model name."""
    return isinstance(value, str) and _NAME.match(value) is not None


def check_name(kind: str, value: str) -> str:
    """Return `value` if it can be a client, round or model name, else raise InvalidName."""
    if not is_name(value):
        raise InvalidName(f"{shown(value)} is not a valid {kind}: expected {NAME_FORM}. Choose another {kind}.")
    return value


# Prefix of the working objects of all rounds.
ROUNDS_PREFIX = "rounds/"
UPDATE_SUFFIX = ".safetensors"


def round_prefix(round_id: str) -> str:
    """Prefix of one round's working objects; listing ROUNDS_PREFIX with the delimiter `/` returns these."""
    return f"{ROUNDS_PREFIX}{check_name('round', round_id)}/"


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
    """The client id in the key of an update.

    Raises:
        InvalidName: the key is not the key of an update.
    """
    name = key.rsplit("/", 1)[-1]
    if not name.endswith(UPDATE_SUFFIX):
        raise InvalidName(f"{shown(key)} is not an update: expected rounds/<round>/updates/<client>{UPDATE_SUFFIX}.")
    return check_name("client id", name.removesuffix(UPDATE_SUFFIX))


def manifest_key(round_id: str) -> str:
    """Key of the manifest that freezes the round."""
    return round_prefix(round_id) + "manifest.json"


def shards_prefix(round_id: str) -> str:
    """Prefix of the shard objects (where shards are too small to be parts of a multipart upload)."""
    return round_prefix(round_id) + "shards/"


def shard_key(round_id: str, shard: int, shards: int, revision: int = 0) -> str:
    """Key of one shard object.

    The shard count and the manifest's revision are part of it, so a replanned round never mixes old and new shards.
    """
    return shards_prefix(round_id) + f"r{revision}/{shard:05d}-of-{shards:05d}"


def norms_key(round_id: str, shard: int, shards: int, revision: int) -> str:
    """Key of the clients' sums of squares over one shard, where the manifest's `norms` is `objects`."""
    return round_prefix(round_id) + f"norms/r{revision}/{shard:05d}-of-{shards:05d}"


def partials_prefix(round_id: str) -> str:
    """Prefix of the partial sums that a tree's aggregators pass to the level above."""
    return round_prefix(round_id) + "partials/"


def partial_key(round_id: str, manifest_sha256: str, level: int, aggregator: int) -> str:
    """Key of one aggregator's partial sum.

    The manifest's digest is part of it, so a replanned round never mixes old and new partial sums.
    """
    return partials_prefix(round_id) + f"{manifest_sha256[:16]}/level-{level}/{aggregator:05d}{UPDATE_SUFFIX}"


def coordinator_key(round_id: str) -> str:
    """Key of the coordinator record (`lambdas.protocol.lease`)."""
    return round_prefix(round_id) + "coordinator.json"


def report_key(round_id: str) -> str:
    """Key of the round's report."""
    return round_prefix(round_id) + "report.json"


def _model_prefix(model: str) -> str:
    return f"models/{check_name('model', model)}/"


def global_key(model: str, round_id: str) -> str:
    """Key of the global model that a round publishes."""
    return f"{_model_prefix(model)}{check_name('round', round_id)}/global{UPDATE_SUFFIX}"


def latest_key(model: str) -> str:
    """Key of the pointer to a model's newest global model."""
    return f"{_model_prefix(model)}latest.json"
