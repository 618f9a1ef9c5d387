"""Loads the compiled inner loop for float32 updates (`fold.c`), which is part of the function zip.

A checkout does not have it (`orchestrator worker`, `orchestrator verify`). numpy then computes sums with the same bits.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

# Adds weight * x to float64 sums, shape (n,), for n little-endian float32 values x. Returns the sum of (weight * x)**2.
Fold = Callable[[memoryview, int, npt.NDArray[np.float64]], float]

# The name is not fold.so, because Python would import that as this module.
LIBRARY = Path(__file__).with_name("libfold.so")


def load(library: Path = LIBRARY) -> Fold | None:
    """The compiled loop; None if there is none for this machine."""
    if not library.exists():
        return None
    try:
        function = ctypes.CDLL(str(library)).fold_float32
    except (OSError, AttributeError) as error:
        log.warning("Cannot load the compiled loop; numpy averages with more CPU time: %s", error)
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_double, ctypes.c_void_p, ctypes.c_size_t]
    function.restype = ctypes.c_double

    def fold(raw: memoryview, weight: int, sums: npt.NDArray[np.float64]) -> float:
        values = np.frombuffer(raw, dtype="<f4")
        # The loop does not check addresses and lengths.
        if len(values) != len(sums):
            raise ValueError(f"{len(values)} values cannot be added to {len(sums)} sums")
        if sums.dtype != np.float64 or not sums.flags.carray or not values.flags.aligned:
            raise ValueError(f"expected writable, contiguous float64 sums and aligned values, got {sums.dtype} sums")
        return float(function(values.ctypes.data, weight, sums.ctypes.data, len(values)))

    return fold
