"""The one place that knows which topology a round has."""

from __future__ import annotations

import re

import pytest

from lambdas.protocol.topologies import GRADS_SHARDING, TOPOLOGIES, TREES
from orchestrator.paths import ROOT
from orchestrator.rounds.averaging import averaging_of
from orchestrator.rounds.sharded import ShardedAveraging
from orchestrator.rounds.tree import TreeAveraging


def test_every_topology_has_an_implementation() -> None:
    assert isinstance(averaging_of(GRADS_SHARDING), ShardedAveraging)
    assert all(isinstance(averaging_of(tree), TreeAveraging) for tree in TREES)


@pytest.mark.parametrize("name", ["GRADS_SHARDING", "TREES", "LAMBDA_FL", "LIFL", *TOPOLOGIES])
def test_only_the_choice_and_the_validation_of_a_topology_name_one(name: str) -> None:
    rooms = (ROOT / "orchestrator" / "rounds").glob("*.py")
    code = {path.stem: re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL) for path in rooms}
    naming = {stem for stem, text in code.items() if re.search(rf"(?<![\w-]){name}(?![\w-])", text)}
    # tree.py names a topology in the advice of an error.
    assert naming <= {"averaging", "request", *({"tree"} if name == GRADS_SHARDING else ())}
