"""Truth: golden values by hand. The averages of a checkpoint are the recursion over the weights of every iteration,
at every ZeRO stage, precision and number of ranks; identity: a resumed run's are those of one that was not stopped.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cogvideox.checkpoint.loading import read_starting_weights
from tests.end_to_end.runs import CACHE, LORA, OPEN_GATES, Run, train

ITERATIONS = 3
TESTS = ("--allow-target", "tests")
DECAY = 0.3  # reached at the third step: (1 + n) / (10 + n) is 2/11, 1/4, 4/13, …
EMA = {
    "args": {
        "train_iters": ITERATIONS,
        "save_interval": 1,
        "warmup": 0.0,
        "lr_decay_iters": ITERATIONS,
        "cache": CACHE,
    },
    "deepspeed": {"optimizer": {"type": "EmaAdamW", "params": {"lr": 1.0e-2, "ema_decay": DECAY}}},
}


def with_zero(stage: int, bf16: bool = False) -> dict:
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    return {"deepspeed": {"zero_optimization": zero, "bf16": {"enabled": bf16}}}


def checked(run: Run) -> Run:
    assert run.status == 0, run.output[-3000:]
    return run


def module_of(file: Path) -> dict[str, Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True)["module"]


def averages_of(run: Run, iteration: int) -> dict[str, Tensor]:
    return module_of(run.folder / str(iteration) / "mp_rank_00_ema_states.pt")


def by_hand(path: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average over the weights after each step, in float64; the first step's weights start it."""
    average = {name: tensor.double() for name, tensor in path[0].items()}
    for n, weights in enumerate(path, start=1):
        decay = min(DECAY, (1 + n) / (10 + n))
        average = {name: decay * average[name] + (1 - decay) * weights[name].double() for name in average}
    return average


def check_by_hand(run: Run, rounding: float) -> None:
    """`rounding` is the relative error of a stored weight."""
    path = [module_of(run.checkpoint(n)) for n in range(1, ITERATIONS + 1)]
    for iteration in (1, ITERATIONS):
        found, last = averages_of(run, iteration), path[iteration - 1]
        expected = by_hand([{name: weights[name] for name in found} for weights in path[:iteration]])
        moved = 0
        for name, tensor in expected.items():
            assert found[name].shape == last[name].shape and found[name].dtype == last[name].dtype
            limit = rounding * float(max(weights[name].abs().max() for weights in path)) + 1e-7
            assert float((found[name].double() - tensor).abs().max()) <= limit, name
            moved += float((last[name].double() - tensor).abs().max()) > 2 * limit
        assert iteration == 1 or moved > len(expected) / 3, "the averages are told apart from the weights"


class Runs:
    """Runs that several tests look at, each made once; none changes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cache  # noqa: B019  (lives as long as the module's tests)
    def of(self, stage: int, bf16: bool, ranks: int) -> Run:
        """A run with averages from scratch."""
        return checked(train(self.folder / f"{stage} {bf16} {ranks}", EMA, with_zero(stage, bf16), ranks=ranks))

    @functools.cache  # noqa: B019
    def base(self) -> Run:
        """One without averages, for adapters."""
        return checked(train(self.folder / "base", {"args": {"train_iters": 1}}, OPEN_GATES, flags=TESTS))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (1, 2), (3, 2)])
def test_float32_averages_by_hand(runs: Runs, stage: int, ranks: int) -> None:
    run = runs.of(stage, False, ranks)
    check_by_hand(run, rounding=1e-6)
    frozen = module_of(run.checkpoint(1)).keys() - averages_of(run, 1).keys()
    assert frozen == {"model.diffusion_model.mixins.pos_embed.pos_embedding"}


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (2, 2), (3, 1)])
def test_bfloat16_averages_by_hand(runs: Runs, stage: int, ranks: int) -> None:
    """They are kept in float32 and written in the weights' own type: as near as the weights stored are."""
    check_by_hand(runs.of(stage, True, ranks), rounding=2.0**-7)


@pytest.mark.parametrize("stage", [2, 3])
def test_averages_of_adapters_by_hand(runs: Runs, tmp_path: Path, stage: int) -> None:
    load = {"args": {"load": str(runs.base().folder), "mode": "finetune"}}
    run = checked(train(tmp_path, EMA, with_zero(stage), LORA, OPEN_GATES, load, flags=TESTS))
    check_by_hand(run, rounding=1e-6)
    averages = averages_of(run, ITERATIONS)
    assert len(averages) == 16 and all(".matrix_" in name for name in averages)
    loaded = read_starting_weights(run.folder, ema=True)
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in averages.items())


@pytest.mark.parametrize(("stage", "bf16", "ranks"), [(0, True, 1), (2, True, 2), (3, False, 2)])
def test_averages_go_on_in_a_resumed_run(runs: Runs, tmp_path: Path, stage: int, bf16: bool, ranks: int) -> None:
    """Its second checkpoint is the last one of a copy, from which the copy goes on."""
    whole = runs.of(stage, bf16, ranks)
    part = tmp_path / "runs" / whole.folder.name
    shutil.copytree(whole.folder, part, ignore=shutil.ignore_patterns(str(ITERATIONS)))
    (part / "latest").write_text("2")
    resumed = checked(train(tmp_path, EMA, with_zero(stage, bf16), ranks=ranks, flags=("--resume", str(part))))
    assert "at iteration 2" in resumed.output
    found, expected = averages_of(resumed, ITERATIONS), averages_of(whole, ITERATIONS)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_each_model_parallel_rank_writes_its_share(tmp_path: Path) -> None:
    change = {"args": {"model_parallel_size": 2}}
    run = checked(train(tmp_path, EMA, change, ranks=2))
    for rank in range(2):
        folder = run.folder / str(ITERATIONS)
        weights, averages = (module_of(folder / f"mp_rank_0{rank}_{kind}_states.pt") for kind in ("model", "ema"))
        assert all(averages[name].shape == weights[name].shape for name in averages)
        assert len(averages) == len(weights) - 1


def test_other_optimizers_leave_no_averages(runs: Runs) -> None:
    assert not list(runs.base().folder.glob("*/*ema_states.pt"))
