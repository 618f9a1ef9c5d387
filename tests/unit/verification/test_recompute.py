"""Averaging once more on the verifier's machine: by shards as workers do it, by trees as their aggregators do it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from lambdas.averaging.mean import average_shard
from lambdas.averaging.pacing import Pacing
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.tree import Tree
from orchestrator.verification.recompute import HashedData, average_by_tree
from tests.support.manifests import MemoryStreams, Update, client_name, manifest_of, table_of

VALUES = 1000


def updates(clients: int, *, whole_numbers: bool) -> list[Update]:
    generator = np.random.default_rng(clients)
    return [
        Update(
            (
                generator.integers(-100, 100, VALUES)
                if whole_numbers
                else generator.standard_normal(VALUES) * 10.0 ** generator.integers(-6, 6)
            )
            .astype("<f4")
            .tobytes(),
            int(generator.integers(1, 1000)),
        )
        for _ in range(clients)
    ]


def manifest(round_: list[Update], topology: str) -> RoundManifest:
    return replace(manifest_of(table_of(("F32", VALUES)), round_), topology=topology)


def by_tree(round_: list[Update], topology: str, values: int) -> bytes:
    result = bytearray()
    streams = MemoryStreams(round_)
    average_by_tree(manifest(round_, topology), streams, result.extend, values)
    assert streams.open == 0
    return bytes(result)


def in_numpy(round_: list[Update], topology: str) -> bytes:
    """The tree, spelled out with whole models."""
    tree = Tree(topology, len(round_))
    sums = [np.frombuffer(u.data, "<f4").astype(np.float64) * float(u.num_examples) for u in round_]
    for level, width in enumerate(tree.widths):
        below, sums = sums, []
        for aggregator in range(width):
            total = np.zeros(VALUES)
            for i in tree.inputs(level, aggregator):
                total = total + below[i]
            sums.append(total)
    return (sums[0] / float(sum(u.num_examples for u in round_))).astype("<f4").tobytes()


@pytest.mark.parametrize("topology", ["lambda-fl", "lifl"])
@pytest.mark.parametrize("clients", [1, 2, 9, 10, 28])
@pytest.mark.parametrize("values", [64, VALUES])
def test_a_tree_is_added_up_in_its_own_order(topology: str, clients: int, values: int) -> None:
    round_ = updates(clients, whole_numbers=False)
    assert by_tree(round_, topology, values) == in_numpy(round_, topology)


@pytest.mark.parametrize("topology", ["lambda-fl", "lifl"])
def test_where_every_sum_is_exact_a_tree_gives_the_bytes_of_the_shards(topology: str) -> None:
    round_ = updates(10, whole_numbers=True)
    flat = bytearray()
    average_shard(manifest(round_, "grads-sharding"), 0, MemoryStreams(round_), flat.extend, Pacing())
    assert by_tree(round_, topology, 100) == bytes(flat)


@pytest.mark.parametrize("topology", ["grads-sharding", "lifl"])
def test_every_byte_of_every_update_is_hashed_once_and_in_order(topology: str) -> None:
    round_ = updates(70, whole_numbers=False)  # more than the worker reads at once
    hashed = HashedData(MemoryStreams(round_))
    ignore = bytearray()
    if topology == "lifl":
        average_by_tree(manifest(round_, topology), hashed.open, ignore.extend, 64)
    else:
        pacing = Pacing(window_elements=128, piece_elements=50)
        average_shard(manifest(round_, topology), 0, hashed.open, ignore.extend, pacing)
    for i, update in enumerate(round_):
        assert hashed.sha256(client_name(i)) == hashlib.sha256(update.data).hexdigest()
