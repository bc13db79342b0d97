"""A network wrapper with a state that its checkpoints do not hold."""

from __future__ import annotations

from typing import Any

import torch

from cogvideox.transformer.wrapper import NetworkWrapper


class Forgetful(NetworkWrapper):
    """The product's wrapper, scaled by how often it was called in training."""

    calls = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: Any, **model_inputs: Any) -> torch.Tensor:
        self.calls += self.training
        return super().forward(x, t, c, **model_inputs) * (1 + 0.1 * self.calls)
