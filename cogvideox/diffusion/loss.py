"""The training loss: mean squared error of the predicted v.

# B batch, T latent frames, C channels, H W
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cogvideox import parallel
from cogvideox.config import instantiate
from cogvideox.diffusion.denoiser import Conditioning, DiscreteDenoiser, Network, over_dims
from cogvideox.errors import UserError

# (network, x_t, √ᾱ (B,), conditioning, idx=t (B,), …) → x̂₀ like x_t.
Denoiser = Callable[..., Tensor]


class VideoDiffusionLoss(nn.Module):
    """(v − v*)² with v* = √ᾱ·ε − √(1−ᾱ)·x₀, which equals the x₀ error weighted by 1/(1−ᾱ) and is finite at every t.

    `offset_noise_level` adds that much noise that is constant over a sample. `min_snr_value` caps the x₀ weight. The
    first `fixed_frames` latent frames are given to the network clean, as in the samplers, and are left out of the mean.
    The entries of the batch that `batch2model_keys` names go to the network as keyword arguments.
    """

    def __init__(
        self,
        sigma_sampler_config: Mapping[str, Any],
        offset_noise_level: float = 0.0,
        min_snr_value: float | None = None,
        fixed_frames: int = 0,
        batch2model_keys: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.sigma_sampler = instantiate(sigma_sampler_config)
        self.offset_noise_level = offset_noise_level
        self.min_snr_value = min_snr_value
        self.fixed_frames = fixed_frames
        self.batch2model_keys = (
            [batch2model_keys] if isinstance(batch2model_keys, str) else list(batch2model_keys or ())
        )
        self.drawn_t: Tensor | None = None  # of the latest batch, for who has to say which ones went wrong

    def forward(
        self,
        network: Network,
        denoiser: Denoiser,
        conditioner: Callable[[dict[str, Any]], dict[str, Any]],
        x: Tensor,
        batch: dict[str, Any],
    ) -> Tensor:
        """The loss of each sample, float32 (B,), for scaled latents `x` (B,T,C,H,W).

        Random draws come in this order: caption dropout, t (B,), ε like x, offset (B,). A batch that holds `idx` or
        `noise` supplies t or ε (offset included) itself. `concat_images` and `lr_input` of the batch are passed on. The
        first `padding_frames` of `x`, copies in front for a temporal patch, are fixed beside the `fixed_frames`.
        """
        fixed = self.fixed_frames + batch.get("padding_frames", 0) if self.fixed_frames else 0
        if fixed >= x.shape[1]:
            raise UserError(f"fixed_frames is {self.fixed_frames}, but a clip has {x.shape[1]} latent frames: lower it")
        cond = conditioner(batch)
        model_inputs = {key: batch[key] for key in self.batch2model_keys if key in batch}
        if "concat_images" in batch:
            cond = {**cond, "concat": batch["concat_images"]}
        if "lr_input" in batch:
            model_inputs["lr_input"] = batch["lr_input"]

        x0 = x.float()
        t = self.drawn_t = self._draw_t(x0, batch)
        noise = self._draw_noise(x0, batch)
        sqrt_alpha_bar = self.sigma_sampler.sqrt_alpha_bar(t)
        x_t, v_target = diffuse(x0, noise, sqrt_alpha_bar)
        x_t = torch.cat([x0[:, :fixed], x_t[:, fixed:]], dim=1) if fixed else x_t

        v = predicted_v(network, denoiser, x_t, sqrt_alpha_bar, cond, t, model_inputs)
        error = ((v - v_target) ** 2)[:, fixed:].flatten(1).mean(1)
        return error if self.min_snr_value is None else error * min_snr_weight(sqrt_alpha_bar, self.min_snr_value)

    def _draw_t(self, x0: Tensor, batch: Mapping[str, Any]) -> Tensor:
        if "idx" in batch:
            return batch["idx"].to(x0.device)
        return parallel.current().model.broadcast(self.sigma_sampler(x0.shape[0], device=x0.device))

    def _draw_noise(self, x0: Tensor, batch: Mapping[str, Any]) -> Tensor:
        if "noise" in batch:
            return batch["noise"].to(x0)
        noise = torch.randn_like(x0)
        if self.offset_noise_level > 0:
            offset = torch.randn(x0.shape[0], device=x0.device)
            noise = noise + self.offset_noise_level * over_dims(offset, x0)
        return parallel.current().model.broadcast(noise)


def predicted_v(
    network: Network,
    denoiser: Denoiser,
    x_t: Tensor,
    sqrt_alpha_bar: Tensor,
    cond: Conditioning,
    t: Tensor,
    model_inputs: Mapping[str, Any],
) -> Tensor:
    """What the network says v is, like `x_t`.

    Our denoiser is asked for it; one of the user's own, which has the reference's signature only, for its x̂₀, and
    v = (√ᾱ·x_t − x̂₀)/√(1−ᾱ).
    """
    if isinstance(denoiser, DiscreteDenoiser) and type(denoiser).forward is DiscreteDenoiser.forward:
        return denoiser.predict_v(network, x_t, sqrt_alpha_bar, cond, t, **model_inputs)
    x0_hat = denoiser(network, x_t, sqrt_alpha_bar, cond, idx=t, **model_inputs)
    a = over_dims(sqrt_alpha_bar, x_t)
    return (a * x_t - x0_hat.to(x_t)) / (1 - a**2) ** 0.5


# Forward process and v (Salimans & Ho 2022, section 2 and appendix D).
def diffuse(x0: Tensor, noise: Tensor, sqrt_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy x_t and the v that the network should say about it, both like `x0`, at level `sqrt_alpha_bar` (B,)."""
    a = over_dims(sqrt_alpha_bar, x0)
    s = (1 - a**2) ** 0.5
    return a * x0 + s * noise, a * noise - s * x0


# Min-SNR weighting (Hang et al. 2023) as the reference caps it: the x₀ weight 1/(1−ᾱ) at most γ, carried over to v.
def min_snr_weight(sqrt_alpha_bar: Tensor, gamma: float) -> Tensor:
    """The factor on the v error, (B,)."""
    return (gamma * (1 - sqrt_alpha_bar**2)).clamp(max=1.0)
