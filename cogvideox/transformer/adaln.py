"""Expert AdaLN: each layer's shifts, scales and gates from the time embedding, and the norms of queries and keys.

Shapes: B batch, N text tokens, S video tokens, D width, E head size.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from sat.model.base_model import BaseMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from cogvideox.transformer.block import BlockLayers, ModulationLinear, transformer_block
from cogvideox.transformer.tensor_parallel import enter_parallel

Streams = tuple[torch.Tensor, torch.Tensor]  # text (B, N, D), video (B, S, D)


class HeadNorm(nn.LayerNorm):
    """LayerNorm over the head dimension; its weights serve every head, and each rank sees only its own heads."""

    ranks: int = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, H, E) -> the same"""
        if self.ranks == 1 or self.weight is None:
            return super().forward(x)
        weight, bias = enter_parallel(self.weight, self.ranks), enter_parallel(self.bias, self.ranks)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class AdaLNMixin(BaseMixin):
    """Runs each layer as one call of `transformer_block`."""

    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "num_layers",
        "time_embed_dim",
        "compressed_num_frames",
        "hidden_size_head",
        "elementwise_affine",
    )

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        time_embed_dim: int,
        compressed_num_frames: int,  # noqa: ARG002  (the reference's signature)
        qk_ln: bool = True,
        hidden_size_head: int = 64,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__()
        self.adaLN_modulations = nn.ModuleList(
            ModulationLinear(time_embed_dim, 12 * hidden_size) for _ in range(num_layers)
        )
        self.hidden_size_head = hidden_size_head
        self.qk_ln = qk_ln
        if qk_ln:
            self.query_layernorm_list = _head_norms(num_layers, hidden_size_head, elementwise_affine)
            self.key_layernorm_list = _head_norms(num_layers, hidden_size_head, elementwise_affine)

    def reinit(self, parent_model: nn.Module | None = None) -> None:  # noqa: ARG002
        """Each block starts as the identity."""
        for modulation in self.adaLN_modulations:
            assert isinstance(modulation, ModulationLinear)
            modulation.reinit()

    def layers_of(self, layer_id: int) -> BlockLayers:
        """The modules of one layer, from SAT's transformer and from this mixin."""
        layer = self.transformer.layers[layer_id]
        return BlockLayers(
            attention_norm=layer.input_layernorm,
            query_key_value=layer.attention.query_key_value,
            query_norm=self.query_layernorm_list[layer_id] if self.qk_ln else nn.Identity(),
            key_norm=self.key_layernorm_list[layer_id] if self.qk_ln else nn.Identity(),
            dense=layer.attention.dense,
            mlp_norm=layer.post_attention_layernorm,
            mlp_up=layer.mlp.dense_h_to_4h,
            mlp_down=layer.mlp.dense_4h_to_h,
            head_size=self.hidden_size_head,
        )

    def layer_forward(
        self,
        hidden_states: Streams,
        mask: None,  # noqa: ARG002
        *,
        layer_id: int,
        time_features: torch.Tensor,
        rotary: torch.Tensor | None,
    ) -> Streams:
        """SAT hook. `time_features` is SiLU of the time embedding, (B, time_embed_dim), the same for all layers."""
        modulation = self.adaLN_modulations[layer_id](time_features)
        layers = self.layers_of(layer_id)
        block = partial(transformer_block, text_is_read=layer_id + 1 < len(self.transformer.layers))
        if self.transformer.recomputes_activations and torch.is_grad_enabled():
            return checkpoint(block, *hidden_states, modulation, rotary, layers, use_reentrant=False)
        return block(*hidden_states, modulation, rotary, layers)


def _head_norms(count: int, head_size: int, elementwise_affine: bool) -> nn.ModuleList:
    return nn.ModuleList(HeadNorm(head_size, eps=1e-6, elementwise_affine=elementwise_affine) for _ in range(count))
