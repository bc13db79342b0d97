"""Low-rank adapters on the attention's linears, under SAT's names: `original`, `matrix_A.{i}`, `matrix_B.{i}`.

Shapes: B batch, L tokens, D width, r rank of the adapter, P model-parallel ranks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from sat import mpu
from sat.model.base_model import BaseMixin
from torch import nn

from cogvideox.errors import UserError
from cogvideox.transformer.arithmetic import add_product, linear
from cogvideox.transformer.tensor_parallel import QueryKeyValueLinear, RowLinear, enter_parallel, leave_parallel, shard

logger = logging.getLogger(__name__)


class Matrices(nn.ParameterList):
    """A ParameterList that can be called (torch's forbids it): ZeRO 3 gathers parameters when a module is called."""

    __call__ = nn.Module.__call__


class DownMatrices(Matrices):
    """`matrix_A`: one (r, I) for each part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, I) -> (B, L, parts r)"""
        return linear(x, self[0] if len(self) == 1 else torch.cat(list(self)))


class UpMatrices(Matrices):
    """`matrix_B`: one (O, r) for each part."""

    def forward(self, low: torch.Tensor, outs: Sequence[torch.Tensor], scaling: float) -> list[torch.Tensor]:
        """(B, L, parts r), outputs (B, L, O) of the parts -> the outputs + scaling * low B^T"""
        lows = low.chunk(len(self), dim=-1)
        return [add_product(out, one, b, scaling) for out, one, b in zip(outs, lows, self, strict=True)]


# LoRA (Hu et al. 2021), equation 3: W x + (alpha / r) B A x.
class LoraLinear(nn.Module):
    """A linear and its adapters, one A and B for each of the linear's `parts`. B starts at zero: nothing changes."""

    def __init__(self, original: nn.Module, parts: int, r: int, lora_alpha: float, lora_dropout: float) -> None:
        super().__init__()
        self.original = original
        self.scaling = lora_alpha / r
        self.lora_dropout = nn.Dropout(lora_dropout) if lora_dropout > 0 else nn.Identity()
        weight = original.weight
        assert isinstance(weight, torch.Tensor)
        rows, columns = weight.shape[0] // parts, weight.shape[1]
        self.matrix_A = DownMatrices(nn.Parameter(weight.new_empty(r, columns)) for _ in range(parts))
        self.matrix_B = UpMatrices(nn.Parameter(weight.new_empty(rows, r)) for _ in range(parts))
        self.register_load_state_dict_pre_hook(_load_plain_linear)
        self.reset_adapters()

    @torch.no_grad()
    def reset_adapters(self) -> None:
        """A as nn.Linear's weight, B zero."""
        for a, b in zip(self.matrix_A, self.matrix_B, strict=True):
            a.copy_(self.fresh_a(a))
            b.zero_()

    def fresh_a(self, like: torch.Tensor) -> torch.Tensor:
        """New values for an A of the shape of `like`."""
        return nn.init.kaiming_uniform_(torch.empty_like(like), a=math.sqrt(5))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The original linear with the adapters added into its weight, in place."""
        delta = torch.cat([b.float() @ a.float() for a, b in zip(self.matrix_A, self.matrix_B, strict=True)])
        weight = self.original.weight
        assert isinstance(weight, torch.Tensor)
        weight.copy_(weight.float() + self.scaling * delta)
        return self.original


def _load_plain_linear(
    _module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_load_arguments: Any
) -> None:
    """A checkpoint without adapters has the linear's own names: they are the original's."""
    for name in ("weight", "bias"):
        if prefix + name in state_dict:
            state_dict[f"{prefix}original.{name}"] = state_dict.pop(prefix + name)


class LoraQueryKeyValue(LoraLinear):
    """Three adapters, for queries, keys and values. Divided by columns: A whole on each rank, B for its own heads."""

    def __init__(self, original: QueryKeyValueLinear, r: int, lora_alpha: float, lora_dropout: float) -> None:
        super().__init__(original, 3, r, lora_alpha, lora_dropout)
        self.ranks = original.ranks
        for b in self.matrix_B:
            b.model_parallel = True  # SAT's mark of a divided weight

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, L, D) -> queries, keys, values (B, L, D / P)"""
        low = enter_parallel(self.matrix_A(self.lora_dropout(x)), self.ranks)
        q, k, v = self.matrix_B(low, self.original(x), self.scaling)
        return q, k, v


class LoraDense(LoraLinear):
    """One adapter for the output projection. Divided by rows: A for the rank's own inputs, B whole on each rank."""

    def __init__(self, original: RowLinear, r: int, lora_alpha: float, lora_dropout: float) -> None:
        self.ranks = original.ranks
        super().__init__(original, 1, r, lora_alpha, lora_dropout)
        self.matrix_A[0].model_parallel = True

    def fresh_a(self, like: torch.Tensor) -> torch.Tensor:
        """The rank's share of the A that one rank alone would draw."""
        whole = super().fresh_a(like.new_empty(like.shape[0], like.shape[1] * self.ranks))
        if self.ranks == 1:
            return whole
        return shard("attention.dense.matrix_A.0", whole, mpu.get_model_parallel_rank(), self.ranks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D / P) -> (B, L, D)"""
        low = leave_parallel(self.matrix_A(self.lora_dropout(x)), self.ranks)
        return self.matrix_B(low, [self.original(x)], self.scaling)[0]


class LoraMixin(BaseMixin):
    """Puts adapters on `query_key_value` and `dense` of the layers in `layer_range` (all by default)."""

    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = ("layer_num",)

    def __init__(
        self,
        layer_num: int,
        r: int = 0,
        lora_alpha: float = 1.0,
        lora_dropout: float = 0.0,
        layer_range: Sequence[int] | None = None,
        qlora: bool = False,
        cross_attention: bool = True,  # noqa: ARG002  (SAT's signature; there is none)
    ) -> None:
        super().__init__()
        if r < 1:
            raise UserError(f"lora_config.params.r is {r}: the adapters' rank must be at least 1 (128 for 2B and 5B)")
        if not 0 <= lora_dropout < 1:
            raise UserError(f"lora_config.params.lora_dropout is {lora_dropout}: must be in [0, 1)")
        if qlora:
            raise UserError("lora_config.params.qlora: true (4-bit base weights) is not supported: set it to false")
        self.layer_range = list(range(layer_num)) if layer_range is None else list(layer_range)
        outside = [i for i in self.layer_range if not 0 <= i < layer_num]
        if outside:
            raise UserError(f"lora_config.params.layer_range has {outside[0]}: layers are 0 to {layer_num - 1}")
        self.r, self.lora_alpha, self.lora_dropout = r, lora_alpha, lora_dropout

    def reinit(self, parent_model: nn.Module | None = None) -> None:  # noqa: ARG002
        """Put the adapters in; where they are in already, start them anew."""
        settings = (self.r, self.lora_alpha, self.lora_dropout)
        for i in self.layer_range:
            attention = self.transformer.layers[i].attention
            if isinstance(attention.dense, LoraDense):
                attention.query_key_value.reset_adapters()
                attention.dense.reset_adapters()
            else:
                attention.query_key_value = LoraQueryKeyValue(attention.query_key_value, *settings)
                attention.dense = LoraDense(attention.dense, *settings)

    def merge_lora(self) -> None:
        """Add the adapters into the weights and take them out; the model computes the same."""
        for i in self.layer_range:
            attention = self.transformer.layers[i].attention
            attention.query_key_value = attention.query_key_value.merged()
            attention.dense = attention.dense.merged()


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of a LoRA matrix."""
    return ".matrix_A." in name or ".matrix_B." in name
