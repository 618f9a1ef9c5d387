"""The arithmetic. It reads streams and writes bytes, and does no I/O of its own."""
