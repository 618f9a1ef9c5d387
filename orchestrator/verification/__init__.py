"""Verifies a published round: follows its digests and recomputes its shards."""
