"""Latents to tokens and back, with the linears at both ends.

Shapes: B batch, T latent frames, C channels, H W latent rows and columns; (pt, ph, pw) the patch, (t, h, w) the token
grid; N text tokens, S = t h w video tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
from einops import rearrange
from sat.model.base_model import BaseMixin
from torch import nn

from cogvideox.errors import UserError
from cogvideox.transformer.arithmetic import Linear
from cogvideox.transformer.block import ModulationLinear, modulated_layer_norm
from cogvideox.transformer.layout import TokenLayout, as_patch

Streams = tuple[torch.Tensor, torch.Tensor]  # text (B, N, D), video (B, S, D)


def patchify(latent: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """(B, T, C, H, W) -> (B, S, C pt ph pw)"""
    pt, ph, pw = layout.patch
    pattern = "b (t pt) c (h ph) (w pw) -> b (t h w) (c pt ph pw)"
    return rearrange(latent, pattern, pt=pt, ph=ph, pw=pw)


def unpatchify(tokens: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """(B, S, C pt ph pw) -> (B, T, C, H, W)"""
    (pt, ph, pw), (t, h, w) = layout.patch, layout.grid
    pattern = "b (t h w) (c pt ph pw) -> b (t pt) c (h ph) (w pw)"
    return rearrange(tokens, pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)


class ImagePatchEmbeddingMixin(BaseMixin):
    """Both kinds of tokens from the latent and from the text encoder's states."""

    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = ("in_channels", "hidden_size", "patch_size")

    def __init__(
        self, in_channels: int, hidden_size: int, patch_size: Sequence[int], text_hidden_size: int | None = None
    ) -> None:
        super().__init__()
        if text_hidden_size is None:
            raise UserError("patch_embed_config.params.text_hidden_size is missing: give the text encoder's width")
        self.text_hidden_size = text_hidden_size
        self.proj = Linear(in_channels * prod(as_patch(list(patch_size))), hidden_size)
        self.text_proj = Linear(text_hidden_size, hidden_size)
        self.register_load_state_dict_pre_hook(_flatten_convolution)

    def reinit(self, parent_model: nn.Module | None = None) -> None:  # noqa: ARG002
        """As the reference: Xavier for the patches."""
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def word_embedding_forward(
        self,
        input_ids: None,  # noqa: ARG002
        *,
        latent: torch.Tensor,
        context: torch.Tensor,
        layout: TokenLayout,
    ) -> Streams:
        """SAT hook. latent (B, T, C, H, W), context (B, N, text width) -> (B, N, D), (B, S, D)"""
        return self.text_proj(context), self.proj(patchify(latent, layout))


def _flatten_convolution(
    _module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_load_arguments: Any
) -> None:
    """The published 1.0 files hold the patch linear as a Conv2d weight (D, C, ph, pw): the same numbers in order."""
    key = prefix + "proj.weight"
    if key in state_dict and state_dict[key].ndim > 2:
        state_dict[key] = state_dict[key].flatten(1)


class FinalLayerMixin(BaseMixin):
    """Video tokens to the prediction: modulated norm, linear, and back to a latent."""

    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "time_embed_dim",
        "patch_size",
        "out_channels",
        "latent_width",
        "latent_height",
        "elementwise_affine",
    )

    def __init__(
        self,
        hidden_size: int,
        time_embed_dim: int,
        patch_size: Sequence[int],
        out_channels: int,
        latent_width: int,  # noqa: ARG002  (the reference's signature)
        latent_height: int,  # noqa: ARG002
        elementwise_affine: bool,
    ) -> None:
        super().__init__()
        self.norm_final = AdaptiveLayerNorm(hidden_size, eps=1e-6, elementwise_affine=elementwise_affine)
        self.linear = Linear(hidden_size, prod(as_patch(list(patch_size))) * out_channels)
        self.adaLN_modulation = ModulationLinear(time_embed_dim, 2 * hidden_size)

    def reinit(self, parent_model: nn.Module | None = None) -> None:  # noqa: ARG002
        """As the reference: Xavier for the output; the modulation starts as nothing, as in the blocks."""
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation.reinit()

    def final_forward(self, video: torch.Tensor, *, time_features: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """SAT hook. video (B, S, D), time_features (B, time_embed_dim) -> (B, T, C_out, H, W)"""
        shift, scale = self.adaLN_modulation(time_features).chunk(2, dim=1)
        return unpatchify(self.linear(self.norm_final(video, shift, scale)), layout)


class AdaptiveLayerNorm(nn.LayerNorm):
    """LayerNorm whose affine map is modulated by shift and scale (B, D)."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        return modulated_layer_norm(x, self.weight, self.bias, shift, scale, self.eps)
