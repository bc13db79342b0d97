"""A loss whose draws depend on the sample alone, so that batches cut differently can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cogvideox.diffusion.denoiser import DiscreteDenoiser, Network
from cogvideox.diffusion.loss import VideoDiffusionLoss


class FixedDrawLoss(VideoDiffusionLoss):
    """The product's loss with t, ε, latents and caption dropout given for each sample by its caption."""

    def forward(
        self,
        network: Network,
        denoiser: DiscreteDenoiser,
        conditioner: Callable[[dict[str, Any]], dict[str, Any]],
        x: Tensor,
        batch: dict[str, Any],
    ) -> Tensor:
        generators = [torch.Generator().manual_seed(sum(map(ord, text))) for text in batch["txt"]]
        t = torch.cat([torch.randint(1000, (1,), generator=generator) for generator in generators])
        draws = [[torch.randn(x.shape[1:], generator=generator) for _ in range(2)] for generator in generators]
        x, noise = (torch.stack(part) for part in zip(*draws, strict=True))
        states = conditioner(batch)["crossattn"]
        cond = {"crossattn": torch.ones_like(states)}
        return super().forward(network, denoiser, lambda _: cond, x, batch | {"idx": t, "noise": noise})
