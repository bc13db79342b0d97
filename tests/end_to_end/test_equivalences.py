"""Truths: accumulation equals a larger batch, model parallel equals one rank, LoRA leaves all else bit-equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.end_to_end.runs import CACHE, CACHED, LORA, OPEN_GATES, Run, train

FEW = {"args": {"train_iters": 6, "cache": CACHE}}
EMA = {"deepspeed": {"optimizer": {"type": "EmaAdamW"}}}


def checked(run: Run) -> Run:
    assert run.status == 0, run.output[-3000:]
    return run


def module_of(run: Run, iteration: int) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoint(iteration), map_location="cpu", weights_only=True)["module"]


def test_model_parallel_size_2_equals_1(tmp_path: Path) -> None:
    for kind, changes in {"full": (FEW,), "lora": (FEW, LORA)}.items():
        one = checked(train(tmp_path / f"{kind}-one", *changes))
        two = checked(train(tmp_path / f"{kind}-two", *changes, {"args": {"model_parallel_size": 2}}, ranks=2))
        assert two.losses == pytest.approx(one.losses, rel=1e-4), kind


def test_with_lora_only_adapters_change_and_the_checkpoint_is_theirs_alone(tmp_path: Path) -> None:
    base = checked(train(tmp_path / "base", {"args": {"train_iters": 1}}))
    load = {"args": {"load": str(base.folder), "mode": "finetune", "train_iters": 5}}
    tuned = checked(train(tmp_path / "tuned", load, LORA))
    adapters = module_of(tuned, 5)
    assert adapters and all(".matrix_A." in name or ".matrix_B." in name for name in adapters)
    assert any(tensor.abs().max() > 0 for name, tensor in adapters.items() if ".matrix_B." in name)


def test_with_lora_every_other_parameter_is_bit_equal_after_training(tmp_path: Path) -> None:
    every = {"args": {"save_interval": 1}}
    run = checked(train(tmp_path, FEW, LORA, OPEN_GATES, every, flags=("--allow-target", "tests")))
    after, before = module_of(run, 6), module_of(run, 1)
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


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_micro_batches_of_one_equal_a_batch_of_two(tmp_path: Path, stage: int) -> None:
    """Truth: identity. Every draw is a function of the sample (see `fixed_draws`), so that only the cut differs."""
    zero = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    losses = {}
    for name, micro, accumulation in (("batch", 2, 1), ("micro", 1, 2)):
        sizes = {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
        target = {"model": {"loss_fn_config": {"target": "tests.end_to_end.fixed_draws.FixedDrawLoss"}}}
        flags = ("--allow-target", "tests")
        losses[name] = checked(train(tmp_path / name, FEW, target, {"deepspeed": sizes | zero}, flags=flags)).losses
    assert losses["micro"] == pytest.approx(losses["batch"], rel=1e-5)


def test_recomputed_activations_change_nothing(tmp_path: Path) -> None:
    """Truth: identity, at ZeRO 2 and 3, full and LoRA: the path that every large model takes."""
    for stage, kind in ((2, {}), (3, LORA)):
        zero = {"deepspeed": {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}}
        recompute = {"model": {"network_config": {"params": {"transformer_args": {"checkpoint_activations": True}}}}}
        kept = checked(train(tmp_path / f"kept-{stage}", FEW, kind, zero))
        again = checked(train(tmp_path / f"again-{stage}", FEW, kind, zero, recompute))
        assert again.losses == kept.losses


@pytest.mark.parametrize(("stage", "kind", "ranks"), [(0, "full", 1), (1, "lora", 1), (2, "full", 2), (3, "lora", 2)])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, stage: int, kind: str, ranks: int) -> None:
    """Truth: identity; the adapters from a cache. Losses and final weights are bit-equal; the samples go on where they
    were, accumulation too.
    """
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    evaluation = {"eval_interval": 2, "eval_iters": 1, "eval_batch_size": 1, "strict_eval": False}
    half = {"args": {"train_iters": 4, "save_interval": 2, "lr_decay_iters": 4, **evaluation}}
    deepspeed = {"deepspeed": {"zero_optimization": zero, "gradient_accumulation_steps": 2}}
    changes = (half, deepspeed, *((LORA, CACHED) if kind == "lora" else ()), EMA)
    whole = checked(train(tmp_path / "whole", *changes, ranks=ranks, flags=("--seed", "8")))
    stopped = checked(train(tmp_path / "parts", *changes, ranks=ranks, flags=("--seed", "8", "--train-iters", "2")))
    assert len(stopped.losses) == 2
    flags = ("--seed", "8", "--resume", str(stopped.folder))
    resumed = checked(train(tmp_path / "parts", *changes, ranks=ranks, flags=flags))
    assert resumed.losses == whole.losses
    after, expected = module_of(resumed, 4), module_of(whole, 4)
    assert after.keys() == expected.keys() and all(torch.equal(after[name], expected[name]) for name in after)


def test_adapters_on_adapters_load_their_base_too(tmp_path: Path) -> None:
    first = checked(train(tmp_path / "base", {"args": {"train_iters": 1}}))
    for name in ("second", "third"):
        load = {"args": {"load": str(first.folder), "mode": "finetune", "train_iters": 1}}
        first = checked(train(tmp_path / name, load, LORA))
    assert all(".matrix_" in name for name in module_of(first, 1))


def test_adapters_keep_to_the_checkpoint_that_they_were_trained_on(tmp_path: Path) -> None:
    """Identity: its run has saved again since, so that `latest` means other weights."""
    base = checked(train(tmp_path / "base", {"args": {"train_iters": 1}}))
    lora = {"args": {"load": str(base.folder), "mode": "finetune", "train_iters": 4, "lr_decay_iters": 4}}
    whole = checked(train(tmp_path / "whole", lora, LORA))
    stopped = checked(train(tmp_path / "parts", lora, LORA, flags=("--train-iters", "2")))
    further = ("--resume", str(base.folder), "--train-iters", "3")
    checked(train(tmp_path / "base", flags=(*further, "deepspeed.optimizer.params.lr=0.1")))
    assert (base.folder / "latest").read_text() == "3"
    resumed = checked(train(tmp_path / "parts", lora, LORA, flags=("--resume", str(stopped.folder))))
    assert resumed.losses == whole.losses


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first, second = (checked(train(tmp_path / name, FEW, flags=("--seed", "3"))) for name in ("first", "second"))
    other = checked(train(tmp_path / "other", FEW, flags=("--seed", "4")))
    assert first.losses == second.losses
    assert first.losses != other.losses
