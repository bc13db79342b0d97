"""AdaLN whose gates are open from the start: with the real ones, at zero, attention learns nothing at first."""

from __future__ import annotations

import torch
from torch import nn

from cogvideox.transformer.adaln import AdaLNMixin


class OpenAdaLN(AdaLNMixin):
    """The product's mixin, started from small random modulations instead of zeros."""

    def reinit(self, parent_model: nn.Module | None = None) -> None:
        super().reinit(parent_model)
        for parameter in self.adaLN_modulations.parameters():
            nn.init.normal_(parameter, std=0.1)
        assert all(torch.isfinite(parameter).all() for parameter in self.parameters())
