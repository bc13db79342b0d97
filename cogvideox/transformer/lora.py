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
from cogvideox.transformer.arithmetic import linear
from cogvideox.transformer.tensor_parallel import QueryKeyValueLinear, RowLinear, enter_parallel, leave_parallel, shard

logger = logging.getLogger(__name__)


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
        self.matrix_A = nn.ParameterList(nn.Parameter(weight.new_empty(r, columns)) for _ in range(parts))
        self.matrix_B = nn.ParameterList(nn.Parameter(weight.new_empty(rows, r)) for _ in range(parts))
        self.register_load_state_dict_pre_hook(_load_plain_linear)
        self.reset_adapters()

    def reset_adapters(self) -> None:
        """A as nn.Linear's weight, B zero."""
        for a in self.matrix_A:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        for b in self.matrix_B:
            nn.init.zeros_(b)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The original linear with the adapters added into its weight, in place."""
        delta = torch.cat([b.float() @ a.float() for a, b in zip(self.matrix_A, self.matrix_B, strict=True)])
        weight = self.original.weight
        assert isinstance(weight, torch.Tensor)
        weight.copy_(weight.float() + self.scaling * delta)
        return self.original

    def add(self, out: torch.Tensor, low: torch.Tensor, part: int) -> torch.Tensor:
        """out (B, L, D) + scaling * low (B, L, r) B^T, in one product."""
        total = torch.addmm(out.flatten(0, 1), low.flatten(0, 1), self.matrix_B[part].t(), alpha=self.scaling)
        return total.view_as(out)


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
        q, k, v = self.original(x)
        low = linear(self.lora_dropout(x), torch.cat(list(self.matrix_A)))  # (B, L, 3 r)
        low_q, low_k, low_v = enter_parallel(low, self.ranks).chunk(3, dim=-1)
        return self.add(q, low_q, 0), self.add(k, low_k, 1), self.add(v, low_v, 2)


class LoraDense(LoraLinear):
    """One adapter for the output projection. Divided by rows: A for the rank's own inputs, B whole on each rank."""

    def __init__(self, original: RowLinear, r: int, lora_alpha: float, lora_dropout: float) -> None:
        self.ranks = original.ranks
        super().__init__(original, 1, r, lora_alpha, lora_dropout)
        self.matrix_A[0].model_parallel = True

    def reset_adapters(self) -> None:
        """The rank's share of the A that one rank alone would draw."""
        super().reset_adapters()
        if self.ranks > 1:
            a = self.matrix_A[0]
            whole = a.new_empty(a.shape[0], a.shape[1] * self.ranks)
            nn.init.kaiming_uniform_(whole, a=math.sqrt(5))
            share = shard("attention.dense.matrix_A.0", whole, mpu.get_model_parallel_rank(), self.ranks)
            a.data.copy_(share)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D / P) -> (B, L, D)"""
        low = leave_parallel(linear(self.lora_dropout(x), self.matrix_A[0]), self.ranks)
        return self.add(self.original(x), low, 0)


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
