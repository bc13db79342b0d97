"""Optimizer state that some ranks saved under ZeRO, cut anew for another number of ranks.

DeepSpeed refuses to load it, or asks for all checkpoints to be converted first. The layouts, of deepspeed 0.19:

- ZeRO 1 and 2: the parameters of an optimizer's group lie flat behind each other, padded at the end; rank r has the
  r-th of equal pieces, as have the moments and averages of them.
- ZeRO 3: of each parameter, flat and padded at its end, rank r has the r-th of equal pieces; its pieces of all
  parameters lie behind each other, in sub-groups that are of no meaning beyond their order.

Files are read lazily: of the other ranks' only what this rank needs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.checkpoint.safe_loading import load_safely
from cogvideox.errors import UserError
from cogvideox.parallel import current

MODEL_STATES, OPTIMIZER_STATES = "model_states.pt", "optim_states.pt"
FROZEN = "frozen_param_fragments"


class Joined:
    """Flat tensors behind each other, without a copy of them."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts, self.dtype = parts, parts[0].dtype
        self.size = sum(part.numel() for part in parts)

    def cut(self, start: int, size: int) -> Tensor:
        """A copy of `size` values from `start` on; zeros beyond the end."""
        out = torch.zeros(size, dtype=self.dtype)
        begins = 0
        for part in self._parts:
            here, there = max(start, begins), min(start + size, begins + part.numel())
            if here < there:
                out[here - start : there - start] = part.view(-1)[here - begins : there - begins]
            begins += part.numel()
        return out


class Recut:
    """Reads a checkpoint of `before` data parallel ranks as if as many had saved it as there are now."""

    def __init__(self, engine: Any, checkpoint: Path, before: int) -> None:
        """UserError: settings under which the cut depends on the ranks."""
        self.optimizer, self.checkpoint, self.before = engine.optimizer, checkpoint, before
        self.rank, self.now = current().data.rank, current().data.size
        self.is_cut = engine.zero_optimization_partition_weights()
        if not self.is_cut and getattr(self.optimizer, "round_robin_gradients", False):
            raise UserError(
                f"{checkpoint} was saved by {before} data parallel ranks with round_robin_gradients, whose order "
                f"depends on their number, and this run has {self.now}: resume on as many"
            )

    def model_file(self, model_rank: int) -> str:
        """The file that stands for this rank's, which there may be none of."""
        rank = f"zero_pp_rank_0_mp_rank_{model_rank:02d}" if self.is_cut else f"mp_rank_{model_rank:02d}"
        return str(self.checkpoint / f"{rank}_{MODEL_STATES}")

    def read(self, path: str, map_location: Any = None) -> Any:
        """As `load_safely`, in its place."""
        if not Path(path).name.endswith(OPTIMIZER_STATES):
            state = load_safely(path, map_location=map_location)
            if self.is_cut and state.get(FROZEN):
                state[FROZEN] = self._frozen(path, state[FROZEN])
            return state | {"dp_world_size": self.now}
        saved = [load_safely(each, map_location="cpu", mmap=True) for each in self._files(path)]
        states = [each["optimizer_state_dict"] for each in saved]
        return saved[0] | {"optimizer_state_dict": self._stage_3(states) if self.is_cut else self._flat(states)}

    def _files(self, path: str) -> Iterator[str]:
        """Those of all earlier ranks for this rank's `path`."""
        name = Path(path).name
        own = f"zero_pp_rank_{self.rank}_"
        if own not in name:
            raise UserError(f"{path} is not named as DeepSpeed names its files: resume on as many ranks as saved it")
        for rank in range(self.before):
            yield str(self.checkpoint / name.replace(own, f"zero_pp_rank_{rank}_"))

    def _flat(self, saved: list[dict[str, Any]]) -> dict[str, Any]:
        """ZeRO 1 and 2: this rank's state dict."""
        partitions = self.optimizer.single_partition_of_fp32_groups
        masters, states = [], {}
        groups = saved[0]["base_optimizer_state"]["param_groups"]
        for number, (own, group) in enumerate(zip(partitions, groups, strict=True)):
            parts = [each["single_partition_of_fp32_groups"][number] for each in saved]
            whole, start = Joined(parts), self.rank * own.numel()
            masters.append(whole.cut(start, max(0, min(own.numel(), whole.size - start))))
            key = group["params"][0]
            of_ranks = [each["base_optimizer_state"]["state"].get(key, {}) for each in saved]
            states[key] = {
                name: Joined([state[name] for state in of_ranks]).cut(start, own.numel()) if _is_flat(value) else value
                for name, value in of_ranks[0].items()
            }
        base = saved[0]["base_optimizer_state"] | {"state": {key: each for key, each in states.items() if each}}
        return saved[0] | {
            "base_optimizer_state": base,
            "single_partition_of_fp32_groups": masters,
            "group_paddings": self.optimizer.groups_padding,
            "partition_count": self.optimizer.partition_count,
        }

    def _stage_3(self, saved: list[dict[str, Any]]) -> dict[str, Any]:
        """ZeRO 3: this rank's state dict."""
        base = [each["optimizer_state_dict"] for each in saved]
        layout = self._groups_of_stage_3()
        groups = [old | {"params": new["params"]} for old, new in zip(base[0]["param_groups"], layout, strict=True)]
        numbers = sorted(base[0]["state"])
        first = base[0]["state"][numbers[0]] if numbers else {}
        moments = {}
        for name in (name for name, value in first.items() if _is_flat(value)):
            moments[name] = self._pieces([[each["state"][n][name] for n in numbers] for each in base])
        others = {name: value for name, value in first.items() if name not in moments}
        state = {
            # Copies: a count that two sub-groups shared would be raised twice a step.
            number: {**copy.deepcopy(others), **{name: cut[number] for name, cut in moments.items()}}
            for number in range(len(self.optimizer.fp16_groups))
        }
        return saved[0] | {
            "optimizer_state_dict": {"state": state if first else {}, "param_groups": groups},
            "fp32_flat_groups": self._pieces([each["fp32_flat_groups"] for each in saved]),
            "partition_count": self.optimizer.partition_count,
        }

    def _groups_of_stage_3(self) -> list[dict[str, Any]]:
        self.optimizer._set_fp32_optimizer_param_groups()
        try:
            return self.optimizer.optimizer.state_dict()["param_groups"]
        finally:
            self.optimizer._clear_fp32_optimizer_param_groups()

    def _pieces(self, of_ranks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """From the sub-groups of each earlier rank to this rank's sub-groups."""
        ranks, begins, cut = [Joined(parts) for parts in of_ranks], 0, []
        for group in self.optimizer.fp16_groups:
            pieces = []
            for parameter in group:
                size = -(-parameter.ds_numel // self.before)
                whole = Joined([rank.cut(begins, size) for rank in ranks])
                pieces.append(self._own(whole, parameter.ds_numel))
                begins += size
            cut.append(torch.cat(pieces))
        return cut

    def _own(self, whole: Joined, numel: int) -> Tensor:
        """This rank's piece of a parameter of `numel` values, which `whole` has with some zeros behind."""
        size = -(-numel // self.now)
        own = torch.zeros(size, dtype=whole.dtype)
        here = max(0, min(size, numel - self.rank * size))
        own[:here] = whole.cut(self.rank * size, here)
        return own

    def _frozen(self, path: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """ZeRO 3: this rank's pieces of frozen weights."""
        shapes = load_safely(path, map_location="cpu", mmap=True)["frozen_param_shapes"]
        name = Path(path).name
        files = [name.replace("zero_pp_rank_0_", f"zero_pp_rank_{rank}_") for rank in range(self.before)]
        ranks = [load_safely(str(self.checkpoint / file), map_location="cpu", mmap=True)[FROZEN] for file in files]
        return {
            name: self._own(Joined([fragments[name].view(-1) for fragments in ranks]), shapes[name].numel())
            for name in own
        }


def _is_flat(value: Any) -> bool:
    """Whether an optimizer's state is one value for each of a parameter's; a step's count is none."""
    return isinstance(value, Tensor) and value.dim() > 0
