"""Truths: accumulation equals a larger batch, model parallel equals one rank, LoRA leaves all else bit-equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.end_to_end.runs import LORA, Run, train

FEW = {"args": {"train_iters": 6}}


def checked(run: Run) -> Run:
    assert run.status == 0, run.output[-3000:]
    return run


def module_of(run: Run, iteration: int) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoint(iteration), map_location="cpu", weights_only=True)["module"]


def test_model_parallel_size_2_equals_1(tmp_path: Path) -> None:
    for kind, change in {"full": {}, "lora": LORA}.items():
        one = checked(train(tmp_path / f"{kind}-one", FEW, change))
        two = checked(train(tmp_path / f"{kind}-two", FEW, change, {"args": {"model_parallel_size": 2}}, ranks=2))
        assert two.losses == pytest.approx(one.losses, rel=1e-4), kind


def test_with_lora_only_adapters_change_and_the_checkpoint_is_theirs_alone(tmp_path: Path) -> None:
    base = checked(train(tmp_path / "base", {"args": {"train_iters": 1}}))
    load = {"args": {"load": str(base.folder), "mode": "finetune", "train_iters": 5}}
    tuned = checked(train(tmp_path / "tuned", load, LORA))
    adapters = module_of(tuned, 5)
    assert adapters and all(".matrix_A." in name or ".matrix_B." in name for name in adapters)
    assert any(tensor.abs().max() > 0 for name, tensor in adapters.items() if ".matrix_B." in name)

    # The same run with all weights saved: what is not an adapter is the base's, bit by bit.
    whole = checked(train(tmp_path / "whole", {"args": {"train_iters": 5}}, LORA, flags=("--seed", "9")))
    fresh = checked(train(tmp_path / "fresh", {"args": {"train_iters": 1}}, LORA, flags=("--seed", "9")))
    after, before = module_of(whole, 5), module_of(fresh, 1)
    frozen = [name for name in after if ".matrix_" not in name]
    assert len(frozen) > 20 and all(torch.equal(after[name], before[name]) for name in frozen)
    assert any(not torch.equal(after[name], before[name]) for name in after if ".matrix_B." in name)


def test_a_finetune_starts_from_the_loaded_weights(tmp_path: Path) -> None:
    base = checked(train(tmp_path / "base", {"args": {"train_iters": 3}}))
    load = {"args": {"load": str(base.folder), "mode": "finetune", "train_iters": 1}, "deepspeed": _rate(0.0)}
    again = checked(train(tmp_path / "again", load))
    before, after = module_of(base, 3), module_of(again, 1)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def _rate(lr: float) -> dict:
    return {"optimizer": {"params": {"lr": lr, "weight_decay": 0.0}}}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first, second = (checked(train(tmp_path / name, FEW, flags=("--seed", "3"))) for name in ("first", "second"))
    other = checked(train(tmp_path / "other", FEW, flags=("--seed", "4")))
    assert first.losses == second.losses
    assert first.losses != other.losses
