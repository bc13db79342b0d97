"""Conversions that hold one layer in memory: mapped weights, cut into layers, each converted when it is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogvideox.checkpoint.streaming import Planned
from cogvideox.errors import UserError

Convert = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

_LAYER = re.compile(r"(?:transformer\.layers|transformer_blocks|adaLN_modulations|_layernorm_list)\.(\d+)\.")


def by_layer(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """The weights of each layer, in order, after those of none, under whichever names."""
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = _LAYER.search(name)
        parts.setdefault(int(match[1]) if match else -1, {})[name] = tensor
    return tuple(parts[number] for number in sorted(parts))


@dataclass(frozen=True)
class Conversion:
    """Mapped weights in parts, and what makes of each part its share of the result.

    `dtype`: that of the result's floating-point tensors, or None to keep each one's own.
    """

    parts: Sequence[Mapping[str, Tensor]]
    convert: Convert
    dtype: torch.dtype | None = None

    def plan(self) -> list[Planned]:
        """What the result will be, found by converting tensors without content."""
        plan = [
            Planned(name, tuple(tensor.shape), self._dtype_of(tensor))
            for part in self.parts
            for name, tensor in self.convert(_empty(part)).items()
        ]
        names = [planned.name for planned in plan]
        assert len(names) == len(set(names)), "two parts give the same weight"
        return plan

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The result. UserError: a value that the type asked for cannot hold."""
        for part in self.parts:
            for name, tensor in self.convert(part).items():
                yield name, self._cast(name, tensor)

    def then(self, convert: Convert) -> Conversion:
        """This conversion, and another after it."""
        first = self.convert
        return Conversion(self.parts, lambda part: convert(first(part)), self.dtype)

    def outline(self) -> dict[str, Tensor]:
        """The result's names with tensors that have shapes and types only."""
        return {each.name: torch.empty(each.shape, dtype=each.dtype, device="meta") for each in self.plan()}

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        cast = tensor.to(self._dtype_of(tensor))
        if cast.dtype == torch.float16 != tensor.dtype and not torch.isfinite(cast).all():
            largest = tensor.abs().max().item()
            raise UserError(f"{name} reaches {largest:.3g}, beyond what fp16 holds: convert to bf16 or fp32 (--dtype)")
        return cast


def _empty(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in part.items()}


def merge_ranks(shards: Sequence[Mapping[str, Tensor]], merge: Callable[[str, list[Tensor]], Tensor]) -> Conversion:
    """One state dict from those of all model parallel ranks; `merge` makes a whole parameter of its shards.

    UserError: ranks that hold different names.
    """
    for rank, shard in enumerate(shards):
        if shard.keys() != shards[0].keys():
            odd = sorted(shard.keys() ^ shards[0].keys())
            raise UserError(
                f"model parallel ranks 0 and {rank} hold different weights ({', '.join(odd[:3])}): "
                "take the files of one checkpoint"
            )
    together = {f"{rank}/{name}": tensor for rank, shard in enumerate(shards) for name, tensor in shard.items()}

    def whole(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = dict.fromkeys(name.partition("/")[2] for name in part)
        return {name: merge(name, [part[f"{rank}/{name}"] for rank in range(len(shards))]) for name in names}

    return Conversion(by_layer(together), whole)
