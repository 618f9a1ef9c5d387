"""The end of an environment. Runs after all other end-to-end tests."""

from __future__ import annotations

from orchestrator.aws.deployment import Deployment
from tests.support.deployed import Environment, Terminal


def test_destroy_leaves_nothing_behind(environment: Environment, deployed: Deployment, terminal: Terminal) -> None:
    inventory = environment.inventory(deployed)
    before = inventory.names()
    for kind in ("bucket", "queue", "function", "mapping", "role", "policy", "log group"):
        assert [name for name in before if name.startswith(f"{kind} ")], f"the inventory lists no {kind}"
    answer = terminal.run("destroy", "--yes", *environment.arguments(), timeout_s=600)
    assert answer == {"environment": environment.name, "destroyed": True}
    assert inventory.names() == []
    environment.applied = False
    gone = terminal.run("rounds", expect=3)
    assert "not deployed" in gone["error"]["message"]
