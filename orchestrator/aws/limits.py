"""The size of uploads in parts, and the number of requests at the same time."""

from __future__ import annotations

# Objects larger than MULTIPART_ABOVE are uploaded in parts, so that a broken connection repeats a part and not the
# whole object. Each part is a billed request, so parts are large.
PART_BYTES = 64 * 1024**2
MULTIPART_ABOVE = 2 * PART_BYTES
# Small requests (headers of updates, batches of jobs) that are sent at the same time.
REQUESTS_AT_ONCE = 32
