"""The topologies in which a round can be averaged."""

from __future__ import annotations

# How a round is averaged: by shards of the model, or by one of the two trees that GradsSharding is compared with, whose
# aggregators hold the whole model (lambdas/trees.py).
GRADS_SHARDING, LAMBDA_FL, LIFL = "grads-sharding", "lambda-fl", "lifl"
TOPOLOGIES = (GRADS_SHARDING, LAMBDA_FL, LIFL)
TREES = (LAMBDA_FL, LIFL)
