"""Truths: `--verify-save` passes what was trained in every kind of run and changes no bit of it (identity); it ends a
run whose model computes from something that no checkpoint holds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.checkpoint.loading import read_starting_weights
from tests.end_to_end.runs import LORA, OPEN_GATES, Run, train

pytestmark = pytest.mark.slow  # another process imports and loads everything at each save

ITERATIONS = 4
EVERY_OTHER = {
    "args": {"train_iters": ITERATIONS, "save_interval": 2},
    "deepspeed": {"optimizer": {"type": "EmaAdamW"}},
}
TESTS = ("--allow-target", "tests")


def checked(run: Run) -> Run:
    assert run.status == 0, run.output[-3000:]
    return run


def with_zero(stage: int, bf16: bool = False) -> dict:
    # At stage 3 small parameters stay whole on each rank: here those below a linear's weight.
    zero = {"stage": stage, "stage3_param_persistence_threshold": 10_000}
    return {"deepspeed": {"zero_optimization": zero, "bf16": {"enabled": bf16}}}


KINDS = {
    "stage 0": ((with_zero(0),), 1),
    "stage 2, bf16, 2 ranks": ((with_zero(2, bf16=True),), 2),
    "stage 3, 2 ranks": ((with_zero(3),), 2),
    "model parallel": (({"args": {"model_parallel_size": 2}},), 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_passes_and_its_losses_are_bit_equal_to_one_without(tmp_path: Path, kind: str) -> None:
    changes, ranks = KINDS[kind]
    without = checked(train(tmp_path / "without", EVERY_OTHER, *changes, ranks=ranks))
    run = checked(train(tmp_path / "with", EVERY_OTHER, *changes, ranks=ranks, flags=("--verify-save",)))
    assert run.output.count("\nverified") == ITERATIONS // 2, run.output[-3000:]
    assert len(without.losses) == ITERATIONS and run.losses == without.losses
    same = [
        read_starting_weights(each.folder, 0, ranks if kind == "model parallel" else 1, True) for each in (run, without)
    ]
    assert all(tensor.equal(same[1].state_dict[name]) for name, tensor in same[0].state_dict.items())


@pytest.mark.parametrize("ranks", [1, 2])
def test_adapters_pass_with_their_base(tmp_path: Path, ranks: int) -> None:
    """On two model parallel ranks each saves its share of the adapters; the base is whole."""
    base = checked(train(tmp_path / "base", {"args": {"train_iters": 1}}, OPEN_GATES, flags=TESTS))
    load = {"args": {"load": str(base.folder), "mode": "finetune", "train_iters": 2}}
    changes = (EVERY_OTHER, load, LORA, OPEN_GATES, {"args": {"model_parallel_size": ranks}})
    run = checked(train(tmp_path / "lora", *changes, ranks=ranks, flags=(*TESTS, "--verify-save")))
    assert run.output.count("\nverified") == 1
    for form in ("raw", "ema", "exported"):
        assert any(line.startswith(form) and line.endswith("ok") for line in run.output.splitlines()), run.output[
            -2000:
        ]


def test_a_model_that_no_checkpoint_holds_ends_the_run(tmp_path: Path) -> None:
    """Its networks read a number that is in no state dict, so that the reloaded one computes something else."""
    wrapper = {"model": {"network_wrapper": "tests.end_to_end.forgetful.Forgetful"}}
    run = train(tmp_path, EVERY_OTHER, wrapper, ranks=2, flags=(*TESTS, "--verify-save"))
    assert run.status == 2 and "Traceback" not in run.output, run.output[-3000:]
    assert run.output.count("is not what was trained") == 1
    assert "raw: its output on fixed noise is" in run.output
    assert {path.name for path in run.folder.iterdir()} >= {"2.not_trusted"}
    assert not (run.folder / "latest").exists() and not (run.folder / "2").exists()
