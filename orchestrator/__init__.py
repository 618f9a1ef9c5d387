"""Drives rounds of serverless federated aggregation: submit, start-round, fetch."""
