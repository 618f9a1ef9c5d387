"""A worker in a process of its own that fails in the middle of a shard: `python -m tests.support.doomed_worker FATE`.

FATE is `kill` (it sends itself SIGKILL) or `memory` (it runs out of memory). The deployment is a JSON document on
standard input. Everything else is done as `orchestrator worker` does it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from lambdas import shard_average
from orchestrator.aws.clients import connect
from orchestrator.workers import poll
from tests.support.kill_points import deployment_of

# Address space that the process may use, and what it then asks for.
_LIMIT, _TOO_MUCH = 8 << 30, 1 << 40


def spoil(fate: str) -> None:
    """Let every shard fail once its first piece is written."""
    average = shard_average.average_shard

    def spoiled(manifest: Any, shard: int, opened: Any, write: Callable[[Any], object], pacing: Any) -> Any:
        def write_some(piece: Any) -> None:
            write(piece)
            if fate == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            bytearray(_TOO_MUCH)

        return average(manifest, shard, opened, write_some, pacing)

    shard_average.average_shard = spoiled
    if fate == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (_LIMIT, _LIMIT))


def main() -> None:
    deployment = deployment_of(json.load(sys.stdin))
    spoil(sys.argv[1])
    aws = connect(deployment.region, deployment.endpoint_url)
    poll.work(aws, deployment, list(deployment.lanes.values()), idle_exit_s=1)


if __name__ == "__main__":
    main()
