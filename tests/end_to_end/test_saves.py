"""How a run saves. Truths: identity (beside the training = while it waits; with a full disk as without a save), golden
lists of files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from cogvideox.checkpoint.manifest import fault_of
from cogvideox.checkpoint.safe_loading import load_safely
from cogvideox.telemetry.metrics_file import read_metrics
from tests.end_to_end.runs import CACHE, LORA, OPEN_GATES, Run, train

TESTS = ("--allow-target", "tests")
OFTEN = {
    "args": {"train_iters": 6, "save_interval": 2, "cache": CACHE},
    "deepspeed": {"optimizer": {"type": "EmaAdamW"}},
}
ZERO_2 = {"deepspeed": {"zero_optimization": {"stage": 2}}}


def checked(run: Run) -> Run:
    assert run.status == 0 and "Traceback" not in run.output, run.output[-3000:]
    return run


def numbers(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.name[0].isdigit())


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, type(one)) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or not isinstance(one, int | float | str))


def test_beside_the_training_the_same_is_saved(tmp_path: Path) -> None:
    waiting = checked(train(tmp_path / "waiting", OFTEN, ZERO_2, ranks=2))
    beside = checked(train(tmp_path / "beside", OFTEN, ZERO_2, ranks=2, flags=("--async-save",)))
    assert beside.losses == waiting.losses and numbers(beside.folder) == ["2", "4", "6"]
    for number in numbers(beside.folder):
        assert fault_of(beside.folder / number) is None
        files = sorted(path.name for path in (waiting.folder / number).iterdir())
        assert files == sorted(path.name for path in (beside.folder / number).iterdir()) and len(files) == 5
        for name in (name for name in files if name.endswith(".pt")):
            assert same(*(load_safely(str(run.folder / number / name), "cpu") for run in (waiting, beside))), name
    assert beside.output.count("saved ") == 3


def test_a_disk_that_is_full_for_one_rank_ends_nothing(tmp_path: Path) -> None:
    well = checked(train(tmp_path / "well", OFTEN, ZERO_2, ranks=2))
    full = {"model": {"network_wrapper": "tests.end_to_end.full_disk.FullDisk"}}
    ill = checked(train(tmp_path / "ill", OFTEN, ZERO_2, full, ranks=2, flags=TESTS))
    assert ill.output.count("iteration 4 could not be saved") == 1 and "No space left on device" in ill.output
    assert numbers(ill.folder) == ["2", "6"] and ill.losses == well.losses
    assert all(fault_of(ill.folder / number) is None for number in ("2", "6"))


def test_a_lora_run_saves_what_trains_unless_all_is_asked_for(tmp_path: Path) -> None:
    base = checked(train(tmp_path / "base", OPEN_GATES, {"args": {"train_iters": 1}}, flags=TESTS))
    load = {"args": {"load": str(base.folder), "mode": "finetune", "train_iters": 1}}
    small = checked(train(tmp_path / "small", LORA, load, OPEN_GATES, flags=TESTS))
    whole = checked(train(tmp_path / "whole", LORA, load, OPEN_GATES, flags=(*TESTS, "--save-full")))
    of_small, of_whole = (load_safely(str(run.checkpoint(1)), "cpu")["module"] for run in (small, whole))
    assert all(".matrix_" in name for name in of_small) and of_small.keys() < of_whole.keys()
    assert same(of_small, {name: of_whole[name] for name in of_small})
    alone = train(tmp_path / "alone", LORA, OPEN_GATES, flags=(*TESTS, "--resume", str(small.folder)))
    assert (
        alone.status == 2
        and f"trains adapters for the weights in it; add --load {base.folder} --mode finetune" in alone.output
    )
    again = checked(train(tmp_path / "again", LORA, OPEN_GATES, {"args": {"train_iters": 1, "mode": "finetune"}},
                          flags=(*TESTS, "--load", str(whole.folder))))  # fmt: skip
    assert "adapters_only" in load_safely(str(again.checkpoint(1)), "cpu")


def test_a_resumed_run_has_its_own_weight_decay(tmp_path: Path) -> None:
    run = checked(train(tmp_path, flags=("--train-iters", "1")))
    decay = "deepspeed.optimizer.params.weight_decay"
    done = checked(train(tmp_path, flags=("--train-iters", "2", "--resume", str(run.folder), f"{decay}=0.25")))
    assert f"{decay} " in done.output and " → 0.25" in done.output
    of_both = [load_safely(str(run.checkpoint(number)), "cpu")["optimizer"]["param_groups"] for number in (1, 2)]
    decays = [{group["weight_decay"] for group in groups} for groups in of_both]
    assert 0.25 in decays[1] and 0.25 not in decays[0]


def test_what_was_logged_after_the_checkpoint_is_void_and_kept_aside(tmp_path: Path) -> None:
    first = checked(train(tmp_path, OFTEN, flags=("--train-iters", "5", "--exit-interval", "5")))
    late = first.folder / "5"
    late.rename(late.with_name("5.incomplete"))  # as if the last save had been cut off
    (first.folder / "latest").write_text("4")
    checked(train(tmp_path, OFTEN, flags=("--resume", "auto")))
    assert [line["iteration"] for line in first.metrics] == [1, 2, 3, 4, 5, 6]
    voided = read_metrics(first.folder / "metrics.voided.jsonl")
    assert [line["iteration"] for line in voided] == [5] and voided[0]["loss"] == first.losses[4]
    assert numbers(first.folder) == ["2", "4", "6"]
