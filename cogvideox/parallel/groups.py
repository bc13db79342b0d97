"""Groups of ranks: world, data parallel and model parallel.

A `Group` of size 1 has no process group behind it and every collective on it is a no-op, so that code which
encodes one clip needs no `torch.distributed`. The entry point installs the real groups once they exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cogvideox.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Some ranks that talk to each other. `rank` is this process's place in the group."""

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Overwrite `tensor` in place on every rank with that of rank `src` of this group."""
        if self.size > 1:
            dist.broadcast(tensor, group_src=src, group=self.process_group)
        return tensor

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        """`value` of rank `src`, on every rank. Picklable; between our own processes only."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group_src=src, group=self.process_group)
        return box[0]

    def on_first(self, function: Callable[[], T]) -> T:
        """What `function` gives on the group's first rank, on every rank; its UserError is raised on all of them."""
        if self.size == 1:
            return function()
        outcome: tuple[Any, str | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = (function(), None)
            except UserError as error:
                outcome = (None, str(error))
        value, mistake = self.broadcast_object(outcome)
        if mistake is not None:
            raise UserError(mistake)
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.process_group)
        return tensor

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mean over the ranks, in place. Floating point tensors only."""
        return self.sum(tensor).div_(self.size)

    def barrier(self) -> None:
        """Wait until every rank of the group is here."""
        if self.size > 1:
            dist.barrier(group=self.process_group)


SINGLE = Group()


@dataclass(frozen=True)
class Groups:
    """The groups that a rank belongs to; world = data × model.

    `host` is the world again, over the CPU and patient: for waits that are longer than a GPU collective may take.
    """

    world: Group = SINGLE
    data: Group = SINGLE
    model: Group = SINGLE
    host: Group = SINGLE


@dataclass
class _Installed:
    groups: Groups = field(default_factory=Groups)


_installed = _Installed()


def install(groups: Groups) -> Groups:
    """Make `groups` what `current()` returns; returns those installed before."""
    before = _installed.groups
    _installed.groups = groups
    return before


def current() -> Groups:
    """The groups of this process: all of size 1 until the entry point installs others."""
    return _installed.groups
