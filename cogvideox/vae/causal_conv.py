"""Causal convolution in time, and the `with` that lets a clip pass through in consecutive time chunks.

# B batch, C channels, T frames (at any level), H W
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Elements of the windows that a CPU convolution gathers at a time: small enough to stay in the cache.
WINDOW_ELEMENTS = 2**22


@dataclass
class Past:
    """What a module remembers of the chunks before: that there were some, and its last input frames."""

    started: bool = False
    tail: Tensor | None = None


class CausalModule(nn.Module):
    """A module that treats the first frame of a clip apart from the others; `streaming` tells it which one that is."""

    past: Past | None = None

    def starts_clip(self) -> bool:
        """Whether the chunk at hand is the first of its clip; a module that is not streaming sees whole clips only."""
        if self.past is None:
            return True
        first, self.past.started = not self.past.started, True
        return first


@contextlib.contextmanager
def streaming(model: nn.Module) -> Iterator[None]:
    """Inside, every call of `model`'s causal modules continues one clip; the caches are dropped on leaving.

    Not reentrant: a model streams one clip at a time.
    """
    modules = [module for module in model.modules() if isinstance(module, CausalModule)]
    assert all(module.past is None for module in modules), "this model is streaming a clip already"
    for module in modules:
        module.past = Past()
    try:
        yield
    finally:
        for module in modules:
            module.past = None


class CausalConv3d(CausalModule):
    """A stride-1 convolution over (T, H, W) that sees no later frame; before the first frame stands its copy.

    While `streaming` is open, the last input frames of one chunk are what the next one's first frame sees.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=(0, kernel_size // 2, kernel_size // 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, H, W) → (B, C_out, T, H, W)."""
        weight = self.conv.weight.to(x.dtype)
        bias = None if self.conv.bias is None else self.conv.bias.to(x.dtype)
        if self.past is None and (x.device.type == "cpu" or x.shape[2] == 1):
            return conv3d_from_first_frame(x, weight, bias)
        return conv3d(self._with_past(x), weight, bias)

    def _with_past(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, C, kernel−1 + T, H, W), the frames before it put in front."""
        reach = self.conv.kernel_size[0] - 1
        if reach == 0:
            return x
        before = [x[:, :, :1]] * reach if self.starts_clip() else [self._tail()]
        x = torch.cat([*before, x], dim=2)
        if self.past is not None:
            self.past.tail = x[:, :, -reach:].clone()
        return x

    def _tail(self) -> Tensor:
        assert self.past is not None and self.past.tail is not None
        return self.past.tail


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Unpadded in time, same-padded in space: (B, C_in, T + k - 1, H, W) → (B, C_out, T, H, W)."""
    if x.device.type == "cpu":
        return conv3d_as_conv2d(x, weight, bias)
    return F.conv3d(x, weight, bias, padding=(0, weight.shape[3] // 2, weight.shape[4] // 2))


def conv3d_from_first_frame(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A conv3d that sees copies of the first frame before it, without making or multiplying them.

    Kernel frames that see the same picture are summed instead. (B, C_in, T, H, W) → (B, C_out, T, H, W).
    """
    reach, frames = weight.shape[2], x.shape[2]
    out = []
    for t in range(min(reach - 1, frames)):
        on_first, on_others = weight[:, :, : reach - t], weight[:, :, reach - t :]
        kernel = torch.cat([on_first.sum(dim=2, keepdim=True), on_others], dim=2)
        out.append(conv3d(x[:, :, : t + 1], kernel, bias))
    if frames >= reach:
        out.append(conv3d(x, weight, bias))
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)


def conv3d_as_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A conv3d, unpadded in time and same-padded in space, as one conv2d over the channels of all the kernel's frames.

    On CPUs oneDNN's conv2d in channels-last order reaches the peak where its conv3d may run at a fifth of it.
    (B, C_in, T + k - 1, H, W) → (B, C_out, T, H, W), channels last in memory.
    """
    reach = weight.shape[2]
    kernel = weight.permute(0, 2, 1, 3, 4).flatten(1, 2)
    rows = x.permute(0, 2, 3, 4, 1)  # b t h w c: a view where x is channels last
    frames = x.shape[2] - reach + 1
    step = max(WINDOW_ELEMENTS // (reach * rows[:, 0].numel()), 1)
    out = []
    for start in range(0, frames, step):
        stop = min(start + step, frames)
        window = rows[:, start:stop]
        if reach > 1:
            window = torch.cat([rows[:, start + k : stop + k] for k in range(reach)], dim=-1)
        images = window.flatten(0, 1).permute(0, 3, 1, 2)  # (b t) (k c) h w
        piece = F.conv2d(images, kernel, bias, padding=weight.shape[-1] // 2).permute(0, 2, 3, 1)
        out.append(piece.unflatten(0, (-1, stop - start)))
    whole = out[0] if len(out) == 1 else torch.cat(out, dim=1)
    return whole.permute(0, 4, 1, 2, 3)


def per_frame(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 2D convolution to every frame. (B, C, T, H, W) → (B, C', T, H', W')."""
    batch = x.shape[0]
    images = x.transpose(1, 2).flatten(0, 1)
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    out = F.conv2d(images, conv.weight.to(x.dtype), bias, stride=conv.stride, padding=conv.padding)
    return out.unflatten(0, (batch, -1)).transpose(1, 2)
