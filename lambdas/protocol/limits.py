"""The largest and smallest sizes: of S3 parts, and of a round's clients, shards and tensors."""

from __future__ import annotations

# Amazon S3 user guide, "Multipart upload limits"; the last part may be smaller than the minimum.
MIN_PART_BYTES = 5 * 1024**2
MAX_PART_BYTES = 5 * 1024**3
MAX_PARTS = 10_000
MAX_SHARDS = MAX_PARTS
MAX_CLIENTS = 100_000
# Headers and manifests are read whole, in small functions. The largest models have about ten thousand tensors, whose
# names have about a hundred characters.
MAX_TENSORS = 50_000
MAX_TENSOR_NAME = 1024
MAX_DIMENSIONS = 64
# A larger example count on one client is a unit error. The limit also keeps every sum of weights an exact float64:
# MAX_CLIENTS * MAX_EXAMPLES < 2**53.
MAX_EXAMPLES = 10**9
MAX_INT = 2**63 - 1
