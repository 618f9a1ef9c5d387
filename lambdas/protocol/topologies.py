"""The topologies in which a round can be averaged."""

from __future__ import annotations

# By shards of the model, or by one of the two trees (lambdas/protocol/tree.py) whose aggregators hold the whole model.
GRADS_SHARDING, LAMBDA_FL, LIFL = "grads-sharding", "lambda-fl", "lifl"
TREES = (LAMBDA_FL, LIFL)
TOPOLOGIES = (GRADS_SHARDING, *TREES)
