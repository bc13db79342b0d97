"""Linear layers whose weights are divided over the model-parallel ranks, on SAT's classes and groups.

SAT's own forwards are replaced: they add a row-parallel bias in a pass of its own, and ask `torch.distributed` for the
group's size at every call. On one rank these are plain linears, and no process group is needed to run them.

Shapes: B batch, L tokens, D width, P model-parallel ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from sat import mpu
from sat.mpu.layers import ColumnParallelLinear, RowParallelLinear
from sat.mpu.mappings import copy_to_model_parallel_region, reduce_from_model_parallel_region

from cogvideox.errors import UserError
from cogvideox.transformer.arithmetic import linear


@contextmanager
def model_parallel_groups() -> Iterator[int]:
    """SAT's groups, which its layers ask for while they are built; gives the model-parallel size.

    Where the entry point has made none, groups of this one process, gone again at the end: a tool or a test can build
    a model, and the groups that a run makes later are not in its way.
    """
    if mpu.model_parallel_is_initialized():
        yield mpu.get_model_parallel_world_size()
        return
    if dist.is_initialized():
        assert dist.get_world_size() == 1, "call mpu.initialize_model_parallel before building the model"
    else:
        assert os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ, "start torch.distributed first"
    owns_process_group = not dist.is_initialized()
    if owns_process_group:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mpu.initialize_model_parallel(1)
    try:
        yield 1
    finally:
        mpu.destroy_model_parallel()
        if owns_process_group:
            dist.destroy_process_group()


def enter_parallel(x: torch.Tensor, ranks: int) -> torch.Tensor:
    """The same `x` on every rank going forward; its gradient summed over the ranks coming back."""
    return copy_to_model_parallel_region(x) if ranks > 1 else x


def leave_parallel(x: torch.Tensor, ranks: int) -> torch.Tensor:
    """The sum of `x` over the ranks going forward; the gradient handed to each rank as it is coming back."""
    return reduce_from_model_parallel_region(x) if ranks > 1 else x


class ColumnLinear(ColumnParallelLinear):
    """x (B, L, D) -> this rank's share of the outputs (B, L, out / P)."""

    ranks: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(enter_parallel(x, self.ranks), self.weight, self.bias)


class QueryKeyValueLinear(ColumnParallelLinear):
    """x (B, L, D) -> this rank's heads' queries, keys and values, each contiguous (B, L, D / P)."""

    ranks: int

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = enter_parallel(x, self.ranks)
        weights = self.weight.chunk(3)
        biases = self.bias.chunk(3)
        q, k, v = (linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        return q, k, v


class RowLinear(RowParallelLinear):
    """This rank's share of the inputs (B, L, in / P) -> the whole output (B, L, out), the same on every rank."""

    ranks: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.ranks == 1:
            return linear(x, self.weight, self.bias)
        return leave_parallel(linear(x, self.weight), self.ranks) + self.bias


def adopt(layer: torch.nn.Module, forward_class: type[torch.nn.Module], ranks: int) -> None:
    """Give a layer that SAT built the forward of `forward_class`, which derives from the class that it has."""
    assert issubclass(forward_class, type(layer)), (forward_class, type(layer))
    layer.__class__ = forward_class
    layer.ranks = ranks  # type: ignore[assignment]


# Ending of a parameter's name -> (axis that is divided, pieces along it that are divided one by one).
DIVIDED: tuple[tuple[str, int, int], ...] = (
    ("query_key_value.weight", 0, 3),
    ("query_key_value.bias", 0, 3),
    ("query_key_value.original.weight", 0, 3),
    ("query_key_value.original.bias", 0, 3),
    ("query_key_value.matrix_B.0", 0, 1),
    ("query_key_value.matrix_B.1", 0, 1),
    ("query_key_value.matrix_B.2", 0, 1),
    ("mlp.dense_h_to_4h.weight", 0, 1),
    ("mlp.dense_h_to_4h.bias", 0, 1),
    ("attention.dense.weight", 1, 1),
    ("attention.dense.original.weight", 1, 1),
    ("attention.dense.matrix_A.0", 1, 1),
    ("mlp.dense_4h_to_h.weight", 1, 1),
)


def shard(name: str, tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """What model-parallel rank `rank` holds of a whole parameter; raises UserError if it cannot be divided."""
    for ending, axis, pieces in DIVIDED:
        if name.endswith(ending):
            if tensor.shape[axis] % (pieces * ranks):
                raise UserError(
                    f"{name} of shape {tuple(tensor.shape)}: axis {axis} does not divide by {pieces * ranks}"
                )
            shares = [piece.chunk(ranks, axis)[rank] for piece in tensor.chunk(pieces, axis)]
            return torch.cat(shares, axis)
    return tensor


def merge(name: str, shards: list[torch.Tensor]) -> torch.Tensor:
    """The whole parameter from all ranks' shards; the inverse of `shard`."""
    for ending, axis, pieces in DIVIDED:
        if name.endswith(ending):
            by_rank = [one.chunk(pieces, axis) for one in shards]
            return torch.cat([share[piece] for piece in range(pieces) for share in by_rank], axis)
    return shards[0]
