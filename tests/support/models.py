"""Models of PyTorch, and the average that a round of them must have."""

from __future__ import annotations

import torch

from orchestrator.demo import StateDict, reference_average

__all__ = ["StateDict", "reference_average", "state_dict"]


def state_dict(seed: int, rows: int = 100) -> StateDict:
    """A state_dict with float32 weights, half precision, a BatchNorm counter and an empty tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "body.weight": torch.randn(rows, 1000, generator=generator),
        "body.bias": torch.randn(rows, generator=generator),
        "bn.running_var": torch.rand(7, generator=generator),
        "bn.num_batches_tracked": torch.tensor(10 + 3 * seed),
        "head.half": torch.randn(5, 3, generator=generator).half(),
        "empty": torch.empty(0, 4),
    }
