"""Reproducible measurements, each a command: see benchmarks/README.md."""
