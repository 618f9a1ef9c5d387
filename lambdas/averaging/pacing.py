"""How a shard is divided into pieces. Standard library only: the planner loads it without numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pacing:
    """How a shard is divided into pieces. Affects speed, memory and request counts, never the result.

    Attributes:
        max_streams: clients whose streams are open at the same time and are read in turn, piece by piece. More clients
            are averaged in groups of this size, one group after the other, with the float64 sums parked on disk.
        piece_elements: values averaged at a time.
        window_elements: values whose sums are parked at a time, 8 bytes each. With more than `max_streams` clients,
            each client's part of a window is one request; with fewer, its part of the shard is one request.
        read_bytes: size of the read buffer, the bytes read from one client before the next one. Each read has the cost
            of switching to another connection and of the evicted caches.
    """

    max_streams: int = 64
    piece_elements: int = 256 * 1024
    window_elements: int = 24 * 1024 * 1024
    read_bytes: int = 1024 * 1024
