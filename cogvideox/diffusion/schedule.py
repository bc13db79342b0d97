"""The noise schedule: √ᾱ for every timestep.

# N timesteps of the schedule (1000), n sampling steps (n ≤ N), t an int index, 0 the cleanest
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cogvideox.config import instantiate
from cogvideox.errors import UserError


class ZeroSNRDDPMDiscretization:
    """DDPM noise levels with an SNR shift and zero terminal SNR. All of it is computed in float64.

    `keep_start` moves `linear_start` against the shift, as the reference does; `post_shift` shifts after the rescale to
    zero terminal SNR instead of before it. With fewer steps than `num_timesteps` the levels are picked first and
    rescaled over the picked ones, as in the reference; `rescale_before_picking` picks from the rescaled table of
    training, as diffusers does (at `shift_scale` 3 the two differ by up to 0.001 in √ᾱ at 50 steps, 0.006 at 10).
    """

    def __init__(
        self,
        linear_start: float = 0.00085,
        linear_end: float = 0.0120,
        num_timesteps: int = 1000,
        shift_scale: float = 1.0,
        keep_start: bool = False,
        post_shift: bool = False,
        rescale_before_picking: bool = False,
    ) -> None:
        if keep_start and not post_shift:
            linear_start = shift_snr(linear_start, shift_scale)
        self.num_timesteps = num_timesteps
        self.shift_scale = shift_scale
        self.post_shift = post_shift
        self.rescale_before_picking = rescale_before_picking
        beta = torch.linspace(linear_start**0.5, linear_end**0.5, num_timesteps, dtype=torch.float64) ** 2
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        self.alpha_bar = alpha_bar if post_shift else shift_snr(alpha_bar, shift_scale)

    def steps(self, n: int) -> tuple[Tensor, Tensor]:
        """√ᾱ float64 (n,) from clean to noise (0), and the timestep t int64 (n,) of each. Raises UserError."""
        t = pick_timesteps(n, self.num_timesteps)
        if self.rescale_before_picking:
            return self._zero_terminal(self.alpha_bar)[t], t
        return self._zero_terminal(self.alpha_bar[t]), t

    def __call__(
        self,
        n: int,
        do_append_zero: bool = True,
        device: str | torch.device = "cpu",
        flip: bool = False,
        return_idx: bool = False,
    ) -> Any:
        """√ᾱ float32 (n,), noise first, or clean first with `flip`.

        `do_append_zero` puts a 0 behind the noise-first table. With `return_idx` also the timesteps, int64 (n,), which
        are clean first whatever `flip` says.
        """
        sqrt_alpha_bar, t = self.steps(n)
        table = sqrt_alpha_bar.flip(0).to(device, torch.float32)
        if do_append_zero:
            table = torch.cat([table, table.new_zeros(1)])
        if flip:
            table = table.flip(0)
        return (table, t.to(device)) if return_idx else table

    def _zero_terminal(self, alpha_bar: Tensor) -> Tensor:
        sqrt_alpha_bar = rescale_zero_terminal_snr(alpha_bar.sqrt())
        return shift_snr(sqrt_alpha_bar**2, self.shift_scale).sqrt() if self.post_shift else sqrt_alpha_bar


class ScheduleTable(nn.Module):
    """√ᾱ by timestep as a buffer that follows the module's device and stays float32; never saved."""

    sqrt_alpha_bar: Tensor

    def __init__(
        self, discretization_config: Mapping[str, Any], num_idx: int, do_append_zero: bool, flip: bool
    ) -> None:
        super().__init__()
        table = instantiate(discretization_config)(num_idx, do_append_zero=do_append_zero, flip=flip)
        self.register_buffer("sqrt_alpha_bar", table.float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """√ᾱ (B,) at the timesteps t (B,)."""
        return self.sqrt_alpha_bar.to(t.device)[t]

    def nearest(self, sqrt_alpha_bar: Tensor) -> Tensor:
        """The timestep (B,) whose level is nearest to `sqrt_alpha_bar` (B,)."""
        distance = sqrt_alpha_bar.float()[:, None] - self.sqrt_alpha_bar.to(sqrt_alpha_bar.device)
        return distance.abs().argmin(dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScheduleTable:
        # `module.half()` casts buffers too: 11 bits of √ᾱ are too few near 1, so take the device and not the dtype.
        table = self.sqrt_alpha_bar
        super()._apply(fn, recurse)
        self.sqrt_alpha_bar = table.to(self.sqrt_alpha_bar.device)
        return self


def shift_snr(alpha_bar: Any, shift_scale: float) -> Any:
    """ᾱ (float or Tensor) with its signal-to-noise ratio divided by `shift_scale`."""
    return alpha_bar / (shift_scale + (1 - shift_scale) * alpha_bar)


# Zero terminal SNR (Lin et al. 2023, Algorithm 1).
def rescale_zero_terminal_snr(sqrt_alpha_bar: Tensor) -> Tensor:
    """√ᾱ (n,), clean first, moved and scaled so that the last is 0 and the first stays."""
    first, last = sqrt_alpha_bar[0], sqrt_alpha_bar[-1]
    return (sqrt_alpha_bar - last) * (first / (first - last))


def pick_timesteps(n: int, num_timesteps: int) -> Tensor:
    """n of the timesteps 0 … num_timesteps−1 as int64 (n,), ascending, evenly spaced and ending with the noisiest.

    Raises UserError for n outside 2 … num_timesteps: over one level there is nothing to rescale.
    """
    if not 2 <= n <= num_timesteps:
        raise UserError(
            f"{n} steps were asked of a schedule of {num_timesteps} timesteps: "
            f"set num_steps (or num_idx) to a value from 2 to {num_timesteps}"
        )
    if n == num_timesteps:
        return torch.arange(num_timesteps)
    # In float64 and cut off, as the reference does: exact division would give 34 of the step counts one other timestep.
    descending = np.linspace(num_timesteps - 1, 0, n, endpoint=False).astype(np.int64)
    return torch.from_numpy(descending[::-1].copy())
