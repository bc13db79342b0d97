"""Truth: what a GPU that is too small ends with; SAT's names are its own again afterwards."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.sat_bridge.bridge import bent, deepspeed_training


def arguments(save: Path) -> argparse.Namespace:
    return argparse.Namespace(save=str(save), experiment_name="trial", resume=None, wandb=False, max_bad_steps=3)


def test_too_little_gpu_memory_is_one_message_with_remedies(tmp_path: Path) -> None:
    theirs = deepspeed_training.train_step
    args = arguments(tmp_path)
    with pytest.raises(UserError) as told, bent(args) as run:
        assert deepspeed_training.train_step == run.train_step
        args.iteration, args.save = 7, str(run.folder)
        (run.folder / "latest").write_text("5")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")
    text = str(told.value)
    for part in (
        "iteration 7",
        "Tried to allocate 2.00 GiB",
        "--zero-stage",
        "docs/memory.md",
        f"--resume {args.save}",
    ):
        assert part in text, text
    assert "total capacity" not in text and deepspeed_training.train_step is theirs


def test_without_a_checkpoint_nothing_is_said_of_going_on(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told, bent(arguments(tmp_path)):
        raise torch.OutOfMemoryError("out of memory")
    assert "--resume" not in str(told.value) and not list(tmp_path.iterdir())
    assert current().world.size == 1
