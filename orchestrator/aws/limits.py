"""How requests to S3 are cut and how many are under way at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


# Objects above this go up in parts, two at a time: a broken connection costs a part, not the object. Every part is a
# billed request, so they are not small.
PART_BYTES = 64 * 1024**2
MULTIPART_ABOVE = 2 * PART_BYTES
# How many small requests (headers of updates, batches of jobs) are under way at once.
REQUESTS_AT_ONCE = 32
