"""Truths: a resumed run keeps its seed, goes on only where it fits, and says what has changed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cogvideox.errors import UserError

Run = Callable[..., argparse.Namespace]
TWO = ("--gradient-accumulation-steps", "2", "--zero-stage", "2")


@pytest.fixture
def earlier(run: Run, place: Path) -> Path:
    """A run that was started with seed 77, two steps of accumulation, and has a checkpoint."""
    args = run("--seed", "77", *TWO)
    folder = place / "runs" / f"{args.experiment_name}-01-01-00-00"
    (folder / "5").mkdir(parents=True)
    (folder / "5/mp_rank_00_model_states.pt").write_bytes(b"PK\x03\x04")
    (folder / "latest").write_text("5")
    OmegaConf.save(OmegaConf.create(args.merged_config), folder / "training_config.yaml")
    return folder


@pytest.mark.parametrize("how", ["folder", "auto"])
def test_the_seed_is_the_runs_own(run: Run, earlier: Path, how: str) -> None:
    args = run("--resume", str(earlier) if how == "folder" else "auto", *TWO)
    assert args.seed == 77 and args.merged_config["args"]["seed"] == 77
    assert run("--resume", str(earlier), "--seed", "77", *TWO).seed == 77


def test_auto_without_a_run_to_resume_changes_nothing(run: Run) -> None:
    assert run("--resume", "auto").seed == 1234


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--seed", "8"), ["--seed 8", "is 8", "trained with 77", "args.seed=77"]),
        (("--zero-stage", "1"), ["--zero-stage 1", "is 1", "args.zero_stage=2"]),
        (("--bf16",), ["args.bf16=False"]),
        (("deepspeed.optimizer.type=EmaAdamW",), ["deepspeed.optimizer.type", "trained with"]),
        (("model.network_config.params.num_layers=1",), ["num_layers", "is 1", "--load"]),
    ],
)
def test_what_the_checkpoint_does_not_fit_is_refused(
    run: Run, earlier: Path, words: tuple[str, ...], parts: list[str]
) -> None:
    with pytest.raises(UserError) as told:
        run("--resume", str(earlier), *(TWO if words[0] != "--zero-stage" else TWO[:2]), *words)
    for part in parts:
        assert part in str(told.value), told.value


def test_what_may_change_is_noted(run: Run, earlier: Path) -> None:
    changed = run("--resume", str(earlier), *TWO[2:], "--gradient-accumulation-steps", "3", "--train-iters", "9")
    notes = [note for note in changed.config_notes if "changed settings" in note]
    assert len(notes) == 1 and "args.gradient_accumulation_steps 2 → 3" in notes[0]
    assert "args.train_iters 450 → 9 (--lr-decay-iters 450 keeps the learning rate's curve)" in notes[0]
    kept = run("--resume", str(earlier), *TWO, "--train-iters", "9", "--lr-decay-iters", "450")
    assert not any("train_iters" in note for note in kept.config_notes)
    same = run("--resume", str(earlier), *TWO)
    assert not any("changed settings" in note for note in same.config_notes)


def test_recomputing_activations_is_free_to_change(run: Run, earlier: Path) -> None:
    recompute = "model.network_config.params.transformer_args.checkpoint_activations=true"
    assert run("--resume", str(earlier), *TWO, recompute).seed == 77


def test_a_record_that_cannot_be_read_decides_nothing(run: Run, earlier: Path) -> None:
    (earlier / "training_config.yaml").write_text("a: [b\n")
    assert run("--resume", str(earlier)).seed == 1234
