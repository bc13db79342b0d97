"""Two ranks that train a small model with a bad step in between, and without, at a stage of ZeRO."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

ACCUMULATION = 2
Faults = dict[int, str]  # which forward goes wrong, and how


class Net(nn.Module):
    """Maps (B, 3) to a loss; `disable_untrainable_params` as SAT asks for it.

    All sizes are even: ZeRO 3 pads what it cannot divide by what lies in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)

    def disable_untrainable_params(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu()).float().square().mean()


class TooMany(Exception):
    """Stands where a run recovers."""


def on_ranks(rank: int, port: int, log: str, case: str, stages: list[int]) -> None:
    """Entry of a process: `case` of this module, at each of the stages, and where DeepSpeed is to check nothing."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    from cogvideox.sat_bridge.distributed import initialize, shutdown

    initialize(
        argparse.Namespace(
            rank=rank, world_size=2, local_rank=rank, distributed_backend="gloo", model_parallel_size=1, seed=3
        )
    )
    run = getattr(sys.modules[__name__], case)
    for stage in stages:
        for dtype in (torch.float32, torch.bfloat16):
            run(rank, stage, dtype, {})
    run(rank, 2, torch.bfloat16, {"bf16": {"enabled": True, "check_grad_overflow": False}})
    without_norm = {"zero_optimization": {"stage": 1, "compute_grad_norm": False}, "gradient_clipping": 0.0}
    run(rank, 1, torch.float32, without_norm)
    shutdown()


def compare(rank: int, stage: int, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    """A bad step changes no bit of the training's state, and the next step is what it were without it."""
    good, bad = Trained(stage, dtype, changes), Trained(stage, dtype, changes)
    for trained in (good, bad):
        trained.step({})
    for kind in ("loss", "gradients"):
        before = bad.state()
        assert any("exp_avg" in name for name in before) and any("shadow" in name for name in before)
        # The second micro-batch, when the first has been accumulated, on the other rank than the one that logs.
        skipped = bad.step({2: kind} if rank == 1 else {})
        assert skipped == 1, f"ZeRO {stage} {dtype} {kind}: {skipped} steps were left out"
        assert_equal(before, bad.state(), f"ZeRO {stage} {dtype} {kind}, after the bad step")
        assert good.step({}) == 0 and bad.step({}) == 0
        assert_equal(good.state(), bad.state(), f"ZeRO {stage} {dtype} {kind}, one step later")
        assert any(not torch.equal(before[name], each) for name, each in bad.state().items())


class Trained:
    """An engine of the product's, trained by its `train_step` on the same batches each time it is made."""

    def __init__(self, stage: int, dtype: torch.dtype, changes: dict[str, Any]) -> None:
        from cogvideox.parallel import current
        from cogvideox.sat_bridge import building
        from cogvideox.sat_bridge.bad_numbers import NumberWatch
        from cogvideox.sat_bridge.recorder import Recorder

        torch.manual_seed(5)
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": ACCUMULATION,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": dtype == torch.bfloat16},
            "optimizer": {"type": "EmaAdamW", "params": {"lr": 0.01}},
            **changes,
        }
        args = argparse.Namespace(deepspeed_config=config, deepspeed=True)
        self.engine, self.optimizer = building.setup_model_untrainable_params_and_optimizer(args, Net().to(dtype))
        self.dtype = dtype
        self.batches = torch.Generator().manual_seed(current().data.rank)
        self.watch = NumberWatch(1, Recorder(), self)

    def data_line(self, *_: Any) -> None:
        pass

    def step(self, faults: Faults) -> int:
        """One `train_step`, whose nth forward has `faults[n]`; given up after one bad step. How many were bad."""
        from cogvideox.sat_bridge.training import train_step

        before = self.watch.recorder.skipped_steps
        forward = self._forward(faults, self.batches.get_state())
        scheduler = argparse.Namespace(step=lambda: None)
        args = argparse.Namespace(iteration=0, batch_size=2)
        try:
            train_step(
                iter(()),
                self.engine,
                self.optimizer,
                scheduler,
                args,
                None,  # type: ignore[arg-type]
                forward_step=forward,
                watch=self.watch,
                recover=give_up,
            )
        except TooMany:
            pass
        return self.watch.recorder.skipped_steps - before

    def _forward(self, faults: Faults, data: Tensor) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        calls: Iterator[int] = iter(range(1, 100))
        any_fault = self.step_has_fault(faults)

        def forward(*_: Any) -> tuple[Tensor, dict[str, Tensor]]:
            number = next(calls)
            x = torch.randn(2, 3, generator=self.batches).to(self.dtype)
            if any_fault:  # its batches come again
                self.batches.set_state(data)
            loss = self.engine.module(x)
            if faults.get(number) == "loss":
                loss = loss * torch.nan
            if faults.get(number) == "gradients":
                loss.register_hook(lambda gradient: gradient * torch.nan)
            return loss, {"loss": loss}

        return forward

    def step_has_fault(self, faults: Faults) -> bool:
        """Whether some rank's step does."""
        from cogvideox.parallel import current

        return any(current().host.gather_objects(bool(faults)))

    def state(self) -> dict[str, Tensor]:
        """Copies of all that a step changes: weights, this rank's masters, moments and averages."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.engine.module.named_parameters():
            found[f"weight {name}"] = getattr(parameter, "ds_tensor", parameter)
        basic = self.engine.basic_optimizer
        for number, each in enumerate(each for group in basic.param_groups for each in group["params"]):
            found[f"master {number}"] = each
            found |= {f"{name} {number}": value for name, value in basic.state.get(each, {}).items()}
        pieces = getattr(self.engine.optimizer, "fp32_partitioned_groups_flat", [])
        for number, each in enumerate(pieces):
            found |= {f"piece {number}": each}
            found |= {f"piece's {name} {number}": value for name, value in basic.state.get(each, {}).items()}
        return {name: each.detach().clone() for name, each in found.items()}


def give_up() -> None:
    raise TooMany


def assert_equal(before: dict[str, Tensor], after: dict[str, Tensor], where: str) -> None:
    assert before.keys() == after.keys(), where
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, f"{where}: {changed}"
    assert all(torch.isfinite(each.float()).all() for each in after.values()), where
