"""Limits of S3, and of what a round may be. Standard library only."""

from __future__ import annotations

# Amazon S3 user guide, "Multipart upload limits"; the last part may be smaller than the minimum.
MIN_PART_BYTES = 5 * 1024**2
MAX_PART_BYTES = 5 * 1024**3
MAX_PARTS = 10_000
MAX_SHARDS = MAX_PARTS
MAX_CLIENTS = 100_000
# What a header or manifest may list. Both are read whole, in small functions; the largest models have some ten
# thousand tensors with names of some hundred characters.
MAX_TENSORS = 50_000
MAX_TENSOR_NAME = 1024
MAX_DIMENSIONS = 64
# A billion examples on one client is a unit error, not a data set. It also keeps every sum of weights an exact
# float64: MAX_CLIENTS * MAX_EXAMPLES < 2**53.
MAX_EXAMPLES = 10**9
MAX_INT = 2**63 - 1
