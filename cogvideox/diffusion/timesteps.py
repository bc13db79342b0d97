"""Which timestep each training sample gets.

# n samples on this rank, t an int index, 0 the cleanest
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cogvideox import parallel
from cogvideox.diffusion.schedule import ScheduleTable
from cogvideox.errors import UserError
from cogvideox.parallel import Group


class DiscreteSampling(nn.Module):
    """Draws timesteps, uniform over `num_idx`, one per sample.

    With `uniform_sampling` the data-parallel ranks are dealt out over strata of equal width, so that the ranks of one
    step cover all noise levels: `group_num` strata, or one per rank when it is 0.
    """

    def __init__(
        self,
        num_idx: int,
        discretization_config: Mapping[str, Any],
        uniform_sampling: bool = False,
        group_num: int = 0,
        do_append_zero: bool = False,
        flip: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= group_num <= num_idx:
            raise UserError(
                f"group_num is {group_num}: set it to 0 (one stratum per rank) or from 1 to num_idx ({num_idx})"
            )
        self.schedule = ScheduleTable(discretization_config, num_idx, do_append_zero, flip)
        self.num_idx = num_idx
        self.uniform_sampling = uniform_sampling
        self.group_num = group_num

    def forward(
        self,
        n: int,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        data_group: Group | None = None,
    ) -> Tensor:
        """t int64 (n,). `data_group` is by default the data-parallel group of this process."""
        group = parallel.current().data if data_group is None else data_group
        if not self.uniform_sampling:
            return torch.randint(self.num_idx, (n,), device=device, generator=generator)
        return draw_stratified(n, self.num_idx, self.group_num, group, device, generator)

    def sqrt_alpha_bar(self, t: Tensor) -> Tensor:
        """√ᾱ float32 (n,) at the timesteps t (n,)."""
        return self.schedule(t)


# "Explicit uniform sampling" (CogVideoX, Yang et al. 2024, section 3.2), for any number of ranks and strata.
def draw_stratified(
    n: int,
    num_idx: int,
    group_num: int,
    group: Group,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """t int64 (n,). Rank r owns the share [r, r+1)/size of the strata, picks one of them, then t within that one.

    Over the ranks the picked place is uniform on [0, 1), so every t is equally likely whatever divides what. Where
    `group_num` divides the number of ranks, a rank's share lies within one stratum and it keeps to that.
    """
    strata = group_num or group.size
    place, within = torch.rand(2, n, dtype=torch.float64, device=device, generator=generator)
    # strata·(rank + place)/size, multiplied before it is divided: whole quotients then stay whole.
    stratum = (strata * (group.rank + place) / group.size).floor().clamp(max=strata - 1)
    t = num_idx * (stratum + within) / strata
    return t.floor().clamp(max=num_idx - 1).long()
