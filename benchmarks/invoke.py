"""Runs one handler inside the box and prints what it took. benchmarks.worker starts it.

    python -m benchmarks.invoke MODULE EVENT_JSON_FILE

Imports and client creation (Lambda's INIT) are timed apart from the invocation. Prints one JSON line.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace


def high_water_mb() -> float:
    """Peak resident memory of this program, MiB. getrusage would include that of the process it was forked from."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Invoke and measure."""
    module, event_file = sys.argv[1:]
    handler = importlib.import_module(module).handler
    event = json.loads(Path(event_file).read_text())
    context = SimpleNamespace(memory_limit_in_mb=event.pop("memory_mb"), function_name="bench", aws_request_id="bench")
    wall, init_cpu_s = time.perf_counter(), time.process_time()
    answer = handler(event, context)
    figures = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - init_cpu_s,
        "init_cpu_s": init_cpu_s,
        "rss_mb": high_water_mb(),
    }
    print(json.dumps({"figures": figures, "answer": answer}))


if __name__ == "__main__":
    main()
