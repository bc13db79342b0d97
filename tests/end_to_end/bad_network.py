"""A network whose output or gradients are NaN at chosen forwards of chosen ranks."""

from __future__ import annotations

import os
from typing import Any

import torch

from cogvideox.parallel import current
from cogvideox.transformer.wrapper import NetworkWrapper


class BadNetwork(NetworkWrapper):
    """The product's wrapper. `BAD_FORWARDS` in the environment says where it goes wrong, as in

        1:loss:4 0:gradients:7-

    on rank 1 the loss of the fourth forward of the training, on rank 0 all gradients from the seventh on. What forwards
    do instead of the training, as computing one again, counts as well.
    """

    calls = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: Any, **model_inputs: Any) -> torch.Tensor:
        v = super().forward(x, t, c, **model_inputs)
        self.calls += self.training
        for rule in os.environ.get("BAD_FORWARDS", "").split() if self.training else ():
            rank, kind, when = rule.split(":")
            first, dash, _ = when.partition("-")
            hit = self.calls >= int(first) if dash else self.calls == int(first)
            if hit and int(rank) == current().data.rank:
                v = v * torch.nan if kind == "loss" else Poison.apply(v)
        return v


class Poison(torch.autograd.Function):
    """The identity, with NaN for a gradient."""

    @staticmethod
    def forward(_: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.nan
