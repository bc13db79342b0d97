"""What the transformer is told as one number a sample: the timestep, and `ofs`.

Shapes: B batch.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from cogvideox.transformer.arithmetic import Linear


# Sinusoids of a scalar, cosines first (Ho et al. 2020; period 10,000), in float32.
def sinusoid(values: torch.Tensor, width: int) -> torch.Tensor:
    """(B,) -> (B, width) float32"""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=values.device))
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def scalar_embedding(width_in: int, width_out: int) -> nn.Sequential:
    """Linear, SiLU, Linear on a sinusoid."""
    return nn.Sequential(Linear(width_in, width_out), nn.SiLU(), Linear(width_out, width_out))
