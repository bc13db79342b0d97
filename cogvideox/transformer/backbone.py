"""SAT's BaseTransformer, built and run as a video transformer needs it.

Its `forward` is ours: SAT's makes a mask that nobody reads, turns layer numbers into tensors, sums the last gradient
over the model-parallel ranks as if a divided layer followed (our last layer is whole on every rank), and checkpoints
by another function on each device.

Shapes: B batch, N text tokens, S video tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from sat.model.transformer import BaseTransformer
from torch import nn

from cogvideox.errors import UserError
from cogvideox.transformer.block import ModulatedLayerNorm
from cogvideox.transformer.layout import TokenLayout
from cogvideox.transformer.tensor_parallel import ColumnLinear, QueryKeyValueLinear, RowLinear, adopt


@dataclass(frozen=True)
class TransformerArgs:
    """The `transformer_args` mapping of a config, in SAT's terms."""

    checkpoint_activations: bool = False  # keep only each block's inputs, and run it again in the backward pass
    vocab_size: int = 1  # no effect: SAT's word embedding is not kept
    max_sequence_length: int = 64  # no effect: SAT's position embedding is not kept
    layernorm_order: str = "pre"  # only "pre": a norm before attention and before the MLP
    skip_init: bool = False  # leave the large weights uninitialised, for a model that will be loaded
    model_parallel_size: int = 1  # ranks that share one model; the launcher's --model-parallel-size decides
    is_decoder: bool = False  # only false: there is no cross-attention

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TransformerArgs:
        """Read and check the config's mapping; raises UserError."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise UserError(f"transformer_args.{unknown[0]} is unknown: known are {', '.join(sorted(known))}")
        args = cls(**given)
        if args.layernorm_order != "pre":
            raise UserError(f"transformer_args.layernorm_order {args.layernorm_order!r}: only 'pre' is supported")
        if args.is_decoder:
            raise UserError("transformer_args.is_decoder: true (cross-attention) is not supported: set it to false")
        return args


class VideoTransformer(BaseTransformer):
    """The stack of layers under SAT's names; what they compute is in the hooks that `BaseModel` collects."""

    def __init__(
        self,
        args: TransformerArgs,
        num_layers: int,
        hidden_size: int,
        num_attention_heads: int,
        elementwise_affine: bool,
        ranks: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(
            num_layers=num_layers,
            vocab_size=1,
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            max_sequence_length=1,
            checkpoint_activations=False,
            layernorm_epsilon=1e-5,
            layernorm_order=args.layernorm_order,
            layernorm=partial(ModulatedLayerNorm, elementwise_affine=elementwise_affine),
            use_final_layernorm=False,
            params_dtype=dtype,
            skip_init=args.skip_init,
            device=device,
        )
        self.recomputes_activations = args.checkpoint_activations
        self.ranks = ranks
        self.final_layernorm = nn.LayerNorm(hidden_size, eps=1e-5, elementwise_affine=elementwise_affine)
        del self.word_embeddings, self.position_embeddings
        for layer in self.layers:
            adopt(layer.attention.query_key_value, QueryKeyValueLinear, ranks)
            adopt(layer.attention.dense, RowLinear, ranks)
            adopt(layer.mlp.dense_h_to_4h, ColumnLinear, ranks)
            adopt(layer.mlp.dense_4h_to_h, RowLinear, ranks)
        self.register_load_state_dict_pre_hook(_drop_unused_embeddings)

    def forward(
        self,
        latent: torch.Tensor,
        context: torch.Tensor,
        time_features: torch.Tensor,
        rotary: torch.Tensor | None,
        layout: TokenLayout,
    ) -> torch.Tensor:
        """latent (B, T, C, H, W), context (B, N, text width) -> (B, T, C_out, H, W)"""
        text, video = self.hooks["word_embedding_forward"](None, latent=latent, context=context, layout=layout)
        add_to_text, add_to_video = self.hooks["position_embedding_forward"](None, layout=layout)
        text = text if add_to_text is None else text + add_to_text
        video = video if add_to_video is None else video + add_to_video
        layer_forward = self.hooks["layer_forward"]
        for layer_id in range(len(self.layers)):
            text, video = layer_forward(
                (text, video), None, layer_id=layer_id, time_features=time_features, rotary=rotary
            )
        video = self.final_layernorm(video)
        return self.hooks["final_forward"](video, time_features=time_features, layout=layout)


def _drop_unused_embeddings(
    _module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_load_arguments: Any
) -> None:
    """Published rotary checkpoints carry a position embedding of SAT's that no model uses."""
    for name in ("word_embeddings.weight", "position_embeddings.weight"):
        state_dict.pop(prefix + name, None)
