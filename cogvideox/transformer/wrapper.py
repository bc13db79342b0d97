"""What the denoiser calls: the transformer, with the conditioning unpacked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class NetworkWrapper(nn.Module):
    """Unpacks the conditioner's mapping for `diffusion_model`, the prefix that its weights have in checkpoints."""

    def __init__(
        self, diffusion_model: nn.Module, compile_model: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model
        self.dtype = dtype
        if compile_model:
            self.diffusion_model.compile()  # in place, so that the weights keep their names

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        c: Mapping[str, torch.Tensor],
        concat_images: torch.Tensor | None = None,
        **model_inputs: torch.Tensor | None,
    ) -> torch.Tensor:
        """x (B, T, C, H, W), t (B,), c with `crossattn` (B, N, D) and perhaps `concat` -> v (B, T, C_out, H, W)

        Images are `concat` of the conditioning, or `concat_images`, by which the reference's callers give them where
        the conditioning has none. `model_inputs` goes to the transformer as it is (`ofs`).
        """
        cond = {name: value.to(self.dtype) for name, value in c.items()}
        return self.diffusion_model(
            x,
            timesteps=t,
            context=cond["crossattn"],
            y=cond.get("vector"),
            concat_images=cond.get("concat", concat_images),
            **model_inputs,
        )
