"""Truths: `--verify-save` passes what was trained in every kind of run and changes no bit of it (identity); it ends a
run whose model computes from something that no checkpoint holds, and no run whose checkpoint it could not look at.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from cogvideox.checkpoint.loading import read_starting_weights
from tests.end_to_end.runs import CACHE, LORA, OPEN_GATES, Run, train
from tools import verify_checkpoint

ITERATIONS = 2
AVERAGED = {
    "args": {"train_iters": ITERATIONS, "save_interval": 1, "cache": CACHE},
    "deepspeed": {"optimizer": {"type": "EmaAdamW"}},
}
TESTS = ("--allow-target", "tests")


def in_this_process(arguments: list[str]) -> tuple[int, str]:
    """The tool's exit status and output, without a new process for it."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        status = verify_checkpoint.main(arguments)
    return status, printed.getvalue().strip()


def checked(run: Run) -> Run:
    assert run.status == 0, run.output[-3000:]
    return run


def with_zero(stage: int, bf16: bool = False) -> dict:
    # At stage 3 small parameters stay whole on each rank: here those below a linear's weight.
    zero = {"stage": stage, "stage3_param_persistence_threshold": 10_000}
    return {"deepspeed": {"zero_optimization": zero, "bf16": {"enabled": bf16}}}


KINDS = {"stage 2, bf16": with_zero(2, bf16=True), "stage 3": with_zero(3)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_two_ranks_passes_and_is_bit_equal_to_one_without(tmp_path: Path, kind: str) -> None:
    changes = (AVERAGED, KINDS[kind])
    without = checked(train(tmp_path / "without", *changes, ranks=2))
    flags = ("--verify-save",)
    run = checked(train(tmp_path / "with", *changes, ranks=2, flags=flags, verifier=in_this_process))
    assert run.output.count("\nverified") == ITERATIONS, run.output[-3000:]
    assert len(without.losses) == ITERATIONS and run.losses == without.losses
    same = [read_starting_weights(each.folder, ema=True) for each in (run, without)]
    assert all(tensor.equal(same[1].state_dict[name]) for name, tensor in same[0].state_dict.items())


def test_adapters_on_two_model_parallel_ranks_pass_with_their_base(tmp_path: Path) -> None:
    """Each saves its share of the adapters; the base is whole. The verifier is a process of its own."""
    base = checked(train(tmp_path / "base", {"args": {"train_iters": 1}}, OPEN_GATES, flags=TESTS))
    load = {"args": {"load": str(base.folder), "mode": "finetune", "save_interval": 2, "model_parallel_size": 2}}
    run = checked(train(tmp_path / "lora", AVERAGED, load, LORA, OPEN_GATES, ranks=2, flags=(*TESTS, "--verify-save")))
    assert run.output.count("\nverified") == 1
    lines = run.output.splitlines()
    for form in ("raw", "ema", "adapters", "exported"):
        assert any(line.startswith(form) and line.endswith("ok") for line in lines), run.output[-2000:]


def test_a_model_that_no_checkpoint_holds_ends_the_run(tmp_path: Path) -> None:
    """Its networks read a number that is in no state dict, so that the reloaded one computes something else."""
    wrapper = {"model": {"network_wrapper": "tests.end_to_end.forgetful.Forgetful"}}
    run = train(tmp_path, AVERAGED, wrapper, ranks=2, flags=(*TESTS, "--verify-save"), verifier=in_this_process)
    assert run.status == 2 and "Traceback" not in run.output, run.output[-3000:]
    assert run.output.count("is not what was trained") == 1
    assert "raw: its output on fixed noise is" in run.output
    assert {path.name for path in run.folder.iterdir()} >= {"1.not_trusted"}
    assert not (run.folder / "latest").exists() and not (run.folder / "1").exists()


def test_a_verifier_that_comes_to_no_verdict_ends_no_run(tmp_path: Path) -> None:
    run = checked(train(tmp_path, AVERAGED, flags=("--verify-save",), verifier=lambda _: (-9, "loading")))
    assert run.output.count("could not be verified, training goes on") == ITERATIONS, run.output[-3000:]
    assert run.output.count("was ended by signal 9") == ITERATIONS
    assert (run.folder / "latest").read_text() == str(ITERATIONS) and not list(run.folder.glob("*.not_trusted"))


def test_a_network_that_cannot_be_verified_is_told_once_at_the_start(tmp_path: Path) -> None:
    network = {"target": "tests.end_to_end.own_network.OwnNames", "params": {"num_frames": None, "clip_frames": 5}}
    run = checked(train(tmp_path, AVERAGED, {"model": {"network_config": network}}, flags=(*TESTS, "--verify-save")))
    said = "checkpoints of this network cannot be verified"
    assert run.output.count(said) == 1 and run.output.index(said) < run.output.index("saved "), run.output[-3000:]
    assert (run.folder / "latest").read_text() == str(ITERATIONS)
    assert not list(run.folder.glob("*/*live_states.pt"))
