"""From noise to latents: DDIM and DPM++ 2M SDE over √ᾱ.

Every step is a linear combination of x, x̂₀, the x̂₀ of the step before and fresh noise, with coefficients that depend on
the schedule alone: they are computed once, in float64, on the host. The latents stay float32 whatever the network
computes in.

# B batch, T latent frames, C channels, H W; a = √ᾱ, s = √(1−ᾱ), λ = ln(a/s); `_next` is the cleaner level
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cogvideox import parallel
from cogvideox.config import instantiate
from cogvideox.diffusion.guidance import VanillaCFG, doubled
from cogvideox.errors import UserError

logger = logging.getLogger(__name__)

NoiseSource = Callable[[Tensor], Tensor]


class Denoise(Protocol):
    """The denoiser with its network bound: noisy `x` at level `sqrt_alpha_bar` (B,) → x̂₀ like `x`."""

    def __call__(
        self, x: Tensor, sqrt_alpha_bar: Tensor, cond: Mapping[str, Any], /, **model_inputs: Any
    ) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """One step of a sampling run: where it is, and x ← x·x + x0·x̂₀ + x0_old·x̂₀_old + noise·ε."""

    t: int
    sqrt_alpha_bar: float
    x: float
    x0: float
    x0_old: float = 0.0
    noise: float = 0.0


class VideoDDIMSampler:
    """Deterministic DDIM (η = 0).

    The first `fixed_frames` latent frames of the given noise are taken as clean frames and stay; with `sdedit` the
    network sees them at the noise level of each step. `verbose` shows a progress bar on rank 0. Sampling runs where the
    noise is: `device` is there for old configs and decides nothing.
    """

    def __init__(
        self,
        discretization_config: Mapping[str, Any],
        num_steps: int | None = None,
        guider_config: Mapping[str, Any] | None = None,
        verbose: bool = False,
        device: str | None = None,
        fixed_frames: int = 0,
        sdedit: bool = False,
    ) -> None:
        self.discretization = instantiate(discretization_config)
        self.guider: VanillaCFG | None = None if guider_config is None else instantiate(guider_config)
        self.num_steps = num_steps
        self.verbose = verbose
        self.device = device
        self.fixed_frames = fixed_frames
        self.sdedit = sdedit

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoise,
        noise: Tensor,
        cond: Mapping[str, Any],
        uc: Mapping[str, Any] | None = None,
        num_steps: int | None = None,
        scale: float | None = None,
        scale_emb: Tensor | None = None,
        ofs: Tensor | None = None,
        generator: torch.Generator | None = None,
        draw_noise: NoiseSource | None = None,
        padding_frames: int = 0,
    ) -> Tensor:
        """Latents (B,T,C,H,W), float32 or wider, from `noise` of that shape.

        `num_steps` and `scale` replace the configured ones; there is no guidance without `uc`, without a guider or at
        scale 1. `scale_emb` and `ofs` (B,) or (1,) go to the denoiser. The noise of the steps is standard normal from
        `generator`, equal on all model-parallel ranks, or `draw_noise(x)` where that is given. `padding_frames` of the
        noise, copies in front for a temporal patch, are fixed beside the `fixed_frames`.
        """
        guide = Guide(denoiser, self.guider, cond, uc, scale, num_steps, present(scale_emb=scale_emb, ofs=ofs))
        draw = draw_noise or shared_normal(generator)
        x = noise.to(torch.promote_types(noise.dtype, torch.float32))
        prefix = x[:, : self.fixed_frames + padding_frames if self.fixed_frames else 0]
        x0_old = x
        for step in self._progress(self.plan(num_steps)):
            x = with_prefix(self._prefix_at(prefix, step, draw), x)
            x0 = guide(x, step)
            x_next = step.x * x + step.x0 * x0
            if step.x0_old:
                x_next = x_next + step.x0_old * x0_old
            if step.noise:
                x_next = x_next + step.noise * draw(x)
            x, x0_old = x_next, x0
        return with_prefix(prefix, x)

    def plan(self, num_steps: int | None = None) -> list[Step]:
        """All steps of a run, noise first; the last one returns x̂₀. Raises UserError if no number of steps is given."""
        n = self.num_steps if num_steps is None else num_steps
        if n is None:
            raise UserError("the sampler has no num_steps: set sampler_config.params.num_steps")
        sqrt_alpha_bar, t = self.discretization.steps(n)
        return self.steps(t.flip(0).tolist(), [*sqrt_alpha_bar.flip(0).tolist(), 1.0])

    # DDIM with η = 0 (Song et al. 2020, equation 12), written for x̂₀.
    def steps(self, t: Sequence[int], a: Sequence[float]) -> list[Step]:
        """The steps for timesteps `t` (n) and levels `a` = √ᾱ (n + 1), noise first, ending with 1."""
        plan = []
        for i, (now, following) in enumerate(zip(a, a[1:], strict=False)):
            ratio = sigma(following) / sigma(now)
            plan.append(Step(t[i], now, x=ratio, x0=following - now * ratio))
        return plan

    def _progress(self, plan: list[Step]) -> Iterable[Step]:
        if not self.verbose or parallel.current().world.rank != 0:
            return plan
        from tqdm import tqdm

        return tqdm(plan, desc=f"{type(self).__name__}, {len(plan)} steps", leave=False)

    def _prefix_at(self, prefix: Tensor, step: Step, draw: NoiseSource) -> Tensor:
        if not self.sdedit or not self.fixed_frames:
            return prefix
        return step.sqrt_alpha_bar * prefix + sigma(step.sqrt_alpha_bar) * draw(prefix)


# SDE-DPM-Solver++(2M) (Lu et al. 2022, equation 18) in the variance-preserving form.
class VPSDEDPMPP2MSampler(VideoDDIMSampler):
    """DPM++ 2M SDE: second order in x̂₀, with fresh noise at every step. Arguments as for DDIM."""

    def steps(self, t: Sequence[int], a: Sequence[float]) -> list[Step]:
        plan = []
        for i, (now, following) in enumerate(zip(a, a[1:], strict=False)):
            s, s_next = sigma(now), sigma(following)
            decay = (now * s_next) / (s * following)  # e^{λ − λ_next}, 0 from pure noise and to clean data
            x0 = following * (1 - decay**2)
            # h/(2·h_last): 0 where the step before came from pure noise (infinite h_last) and at both ends.
            half_ratio = 0.0
            if i > 0 and a[i - 1] > 0 and s_next > 0:
                half_ratio = (log_snr(following) - log_snr(now)) / (log_snr(now) - log_snr(a[i - 1])) / 2
            plan.append(
                Step(
                    t[i],
                    now,
                    x=decay * s_next / s,
                    x0=x0 * (1 + half_ratio),
                    x0_old=-x0 * half_ratio,
                    noise=s_next * (1 - decay**2) ** 0.5,
                )
            )
        return plan


@dataclass(frozen=True)
class Guide:
    """The denoiser under guidance: both halves in one doubled batch."""

    denoiser: Denoise
    guider: VanillaCFG | None
    cond: Mapping[str, Any]
    uc: Mapping[str, Any] | None
    scale: float | None
    num_steps: int | None
    model_inputs: Mapping[str, Any]

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x̂₀ like `x` at a step."""
        if self.uc is None or self.guider is None or self.scale == 1:
            return self._denoise(x, step, self.cond, self.model_inputs)
        of_samples = {key: value.expand(x.shape[0], *value.shape[1:]) for key, value in self.model_inputs.items()}
        both_inputs = {key: torch.cat([value, value]) for key, value in of_samples.items()}
        x0 = self._denoise(torch.cat([x, x]), step, doubled(self.uc, self.cond), both_inputs)
        return self.guider(x0, step.t, self.scale, self.num_steps)

    def _denoise(self, x: Tensor, step: Step, cond: Mapping[str, Any], model_inputs: Mapping[str, Any]) -> Tensor:
        level = x.new_full((x.shape[0],), step.sqrt_alpha_bar)
        idx = torch.full((x.shape[0],), step.t, dtype=torch.int64, device=x.device)
        return self.denoiser(x, level, cond, idx=idx, **model_inputs).to(x.dtype)


def shared_normal(generator: torch.Generator | None) -> NoiseSource:
    """Standard normal noise like a tensor, the same on every model-parallel rank."""

    def draw(x: Tensor) -> Tensor:
        at = x.device if generator is None else generator.device
        noise = torch.randn(x.shape, dtype=x.dtype, device=at, generator=generator)
        return parallel.current().model.broadcast(noise.to(x.device))

    return draw


def present(**inputs: Tensor | None) -> dict[str, Tensor]:
    """Those of `inputs` that are given."""
    return {name: value for name, value in inputs.items() if value is not None}


def with_prefix(prefix: Tensor, x: Tensor) -> Tensor:
    """`x` with its first frames replaced by `prefix`; `x` itself where there is no prefix."""
    return torch.cat([prefix, x[:, prefix.shape[1] :]], dim=1) if prefix.shape[1] else x


def sigma(a: float) -> float:
    """√(1 − a²)."""
    return math.sqrt(1 - a * a)


def log_snr(a: float) -> float:
    """λ = ln(a / √(1 − a²))."""
    return math.log(a / sigma(a))
