"""What the tests share. A test imports from here or from the product, never from another test.

- AWS without AWS: `s3`, `sqs`, `servers` (ranges over HTTP), `proxy` (in front of an emulator).
- Rounds: `rounds` (updates, workers, what a bucket holds), `pinned`, `trees`, `manifests` (rounds without storage).
- Expected values: `reference` (bytes, value by value), `models` (PyTorch).
- Generated input: `strategies`, `hostile`.
- Processes: `commands`, `deployed`, `mortal` and `kill_points` (they die at a chosen call).
"""
