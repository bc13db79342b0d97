"""One transformer block as a function of its tensors and its layers, with nothing of SAT in it.

Layers are passed as modules and called, not their weights: ZeRO 3 gathers a weight when its module is called.

Shapes: B batch, N text tokens, S video tokens, L = N + S, D width, H heads (of this rank), E head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cogvideox.transformer.arithmetic import Linear, attend

Layer = Callable[[torch.Tensor], torch.Tensor]


class Modulation(NamedTuple):
    """Shift, scale and gate of one half of a block, each (B, D): expert AdaLN has a set for each kind of token."""

    video_shift: torch.Tensor
    video_scale: torch.Tensor
    video_gate: torch.Tensor
    text_shift: torch.Tensor
    text_scale: torch.Tensor
    text_gate: torch.Tensor


def split_modulation(chunks: torch.Tensor) -> tuple[Modulation, Modulation]:
    """(B, 12 D) -> attention's and the MLP's; the order is video's attention, video's MLP, then the text's two."""
    c = chunks.chunk(12, dim=1)
    return Modulation(*c[0:3], *c[6:9]), Modulation(*c[3:6], *c[9:12])


class ModulationLinear(nn.Sequential):
    """The published names' SiLU and Linear; SiLU is the same for all layers and is computed once, outside."""

    def __init__(self, time_embed_dim: int, width: int) -> None:
        super().__init__(nn.SiLU(), Linear(time_embed_dim, width))

    @property
    def linear(self) -> nn.Linear:
        linear = self[1]
        assert isinstance(linear, nn.Linear)
        return linear

    def reinit(self) -> None:
        """AdaLN-zero (Peebles & Xie 2023): nothing is shifted, scaled or let through at first."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, time_features: torch.Tensor) -> torch.Tensor:
        """SiLU of the time embedding (B, time_embed_dim) -> (B, width)"""
        return self.linear(time_features)


class ModulatedLayerNorm(nn.LayerNorm):
    """LayerNorm with the affine map of AdaLN folded into its own, text and video each with theirs."""

    def forward(  # type: ignore[override]
        self, text: torch.Tensor | None, video: torch.Tensor, modulation: Modulation
    ) -> torch.Tensor:
        """(B, N, D), (B, S, D) -> (B, L, D); without text, (B, S, D)"""
        m = modulation
        video = modulated_layer_norm(video, self.weight, self.bias, m.video_shift, m.video_scale, self.eps)
        if text is None:
            return video
        text = modulated_layer_norm(text, self.weight, self.bias, m.text_shift, m.text_scale, self.eps)
        return torch.cat([text, video], dim=1)


def modulated_layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    shift: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift, for x (B, L, D); shift and scale (B, D).

    The two affine maps are one, (weight (1 + scale), bias (1 + scale) + shift), of size B D; and for a batch of one
    it is the norm's own, so that all is one pass over x.
    """
    factor = 1 + scale
    offset = shift if bias is None else torch.addcmul(shift, bias, factor)
    factor = factor if weight is None else weight * factor
    if x.shape[0] == 1:
        return F.layer_norm(x, x.shape[-1:], factor[0], offset[0], eps)
    return torch.addcmul(offset.unsqueeze(1), F.layer_norm(x, x.shape[-1:], None, None, eps), factor.unsqueeze(1))


def turn(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Turn each interleaved pair of x (B, L, H, E) by rotary (L, 1, E/2) complex64, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).to(x.dtype)


class BlockLayers(NamedTuple):
    """The layers of one block. The head norms may be `nn.Identity`."""

    attention_norm: ModulatedLayerNorm
    query_key_value: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    query_norm: Layer
    key_norm: Layer
    dense: Layer
    mlp_norm: ModulatedLayerNorm
    mlp_up: Layer
    mlp_down: Layer
    head_size: int


def attention(x: torch.Tensor, rotary: torch.Tensor | None, layers: BlockLayers, first_query: int) -> torch.Tensor:
    """Self-attention of the tokens from `first_query` on to all. (B, L, D) -> (B, L - first_query, D)"""
    q, k, v = (heads.unflatten(-1, (-1, layers.head_size)) for heads in layers.query_key_value(x))  # (B, L, H, E)
    q, k = layers.query_norm(q[:, first_query:]), layers.key_norm(k)
    if rotary is not None:
        q, k = turn(q, rotary[first_query:]), turn(k, rotary)
    mixed = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B, H, L - first_query, E)
    return layers.dense(mixed.transpose(1, 2).flatten(2))


def add_gated(x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The residual step. x, update (B, L, D), gate (B, D)"""
    return torch.addcmul(x, update, gate.unsqueeze(1))


def transformer_block(
    text: torch.Tensor,
    video: torch.Tensor,
    modulation: torch.Tensor,
    rotary: torch.Tensor | None,
    layers: BlockLayers,
    text_is_read: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """text (B, N, D), video (B, S, D), modulation (B, 12 D) -> text, video

    Nobody reads the text after the last block: with `text_is_read` false it goes into the attention and stays as it is.
    """
    for_attention, for_mlp = split_modulation(modulation)
    lengths = [text.shape[1], video.shape[1]]
    x = layers.attention_norm(text, video, for_attention)
    if text_is_read:
        of_text, of_video = attention(x, rotary, layers, 0).split(lengths, dim=1)
        text = add_gated(text, of_text, for_attention.text_gate)
    else:
        of_video = attention(x, rotary, layers, text.shape[1])
    video = add_gated(video, of_video, for_attention.video_gate)
    x = layers.mlp_norm(text if text_is_read else None, video, for_mlp)
    x = layers.mlp_down(F.gelu(layers.mlp_up(x), approximate="tanh"))
    if text_is_read:
        of_text, x = x.split(lengths, dim=1)
        text = add_gated(text, of_text, for_mlp.text_gate)
    return text, add_gated(video, x, for_mlp.video_gate)
