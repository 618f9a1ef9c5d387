"""The dtypes in which float32 tensors can be stored. Standard library only: the command line loads it."""

from __future__ import annotations

WIRE_NAMES = {"bfloat16": "BF16", "float16": "F16"}
