"""Two model-parallel ranks, one after the other in one process: the second gets what the first broadcast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cogvideox.parallel import Group, Groups, install


@dataclass(frozen=True)
class ReplayedGroup(Group):
    """A model-parallel rank; rank 1 receives what rank 0 sent, in order."""

    sent: list[Tensor] = field(default_factory=list)

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        if self.rank == src:
            self.sent.append(tensor.clone())
            return tensor
        return tensor.copy_(self.sent.pop(0))


def on_both_ranks(run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """`run` on rank 0 and on rank 1 of a model-parallel pair, whose random states differ."""
    sent: list[Tensor] = []
    results = []
    for rank in range(2):
        before = install(Groups(model=ReplayedGroup(rank=rank, size=2, sent=sent)))
        try:
            torch.manual_seed(100 + rank)
            results.append(run())
        finally:
            install(before)
    assert not sent, "the ranks broadcast different numbers of tensors"
    return results[0], results[1]
