"""The latent's distribution given a clip: a diagonal Gaussian.

# B batch, C latent channels, T latent frames, h w
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Posterior:
    """N(mean, exp(logvar)), each (B, C, T, h, w), unscaled."""

    def __init__(self, parameters: Tensor) -> None:
        """`parameters` (B, 2C, T, h, w): means, then log variances, which are clamped to [−30, 20]."""
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation (B, C, T, h, w)."""
        return (0.5 * self.logvar).exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw (B, C, T, h, w); `generator` lives on the latent's device."""
        noise = torch.empty_like(self.mean, memory_format=torch.contiguous_format).normal_(generator=generator)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The likeliest latent (B, C, T, h, w): the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1) in nats, summed over everything but the batch: (B,)."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(dim=1)


class DiagonalGaussianRegularizer(nn.Module):
    """Reads the encoder's output as a posterior; `sample: false` makes encoding deterministic (the mode)."""

    def __init__(self, sample: bool = True) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, parameters: Tensor) -> Posterior:
        """(B, 2C, T, h, w) → posterior over (B, C, T, h, w)."""
        return Posterior(parameters)

    def draw(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """The latent (B, C, T, h, w) that encoding gives."""
        return posterior.sample(generator) if self.sample else posterior.mode()
