"""Normalization over a clip in chunks.

Truths checked: reference (torch's group_norm in float64), identity (chunks make no difference).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cogvideox.errors import UserError
from cogvideox.vae.norms import GroupNorm, stretch


@pytest.mark.parametrize("channels", [32, 96])
@pytest.mark.parametrize("sizes", [[9], [5, 4], [1, 2, 6]])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_statistics_are_the_whole_clips(channels, sizes, memory_format):
    """Also where the mean is larger than the deviation, as in a network's deep levels."""
    torch.manual_seed(0)
    x = (torch.randn(2, channels, 9, 24, 32) * 3 + 20).contiguous(memory_format=memory_format)
    norm = GroupNorm(channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), 1e-6)
    chunks = list(x.split(sizes, dim=2))
    statistics = norm.statistics(chunks)
    out = torch.cat([norm(chunk, statistics) for chunk in chunks], dim=2)
    assert (out - expected).abs().max() <= 1e-5


def test_channels_must_make_groups():
    with pytest.raises(UserError, match="48 channels.*32.*ch_mult"):
        GroupNorm(48)


def test_the_first_frame_stays_one_frame():
    z = torch.arange(3.0).view(1, 1, 3, 1, 1)
    assert stretch(z, torch.Size((5, 2, 2)), first=True)[0, 0, :, 0, 0].tolist() == [0, 1, 1, 2, 2]
    assert stretch(z, torch.Size((6, 2, 2)), first=False)[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
