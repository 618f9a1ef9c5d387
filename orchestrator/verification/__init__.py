"""Verifies a published round: follows its SHA-256 chain and recomputes its shards."""
