"""Reproducible measurements. Each is a command: see benchmarks/README.md."""
