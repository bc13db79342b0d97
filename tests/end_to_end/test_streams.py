"""Training from tar shards. Truths: every sample once an epoch; a resumed run goes on as if it had not stopped."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.data.shard_files import write_shards
from tests.end_to_end.runs import Run, train


def checked(run: Run) -> Run:
    assert run.status == 0, run.output[-3000:]
    return run


def test_a_run_on_shards_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "shards")
    args = {"train_data": [str(data)], "valid_data": [str(data)], "train_iters": 6, "save_interval": 3}
    shards = {
        "args": {
            **args,
            "iterable_dataset": True,
            "lr_decay_iters": 6,
            "eval_interval": 3,
            "eval_iters": 1,
            "strict_eval": False,
        }
    }
    params = {"image_size": "[16, 32]", "num_frames": 5, "fps": 8, "skip_frms_num": 0}
    flags = ("--seed", "4", "data.params=null", *(f"data.params.{name}={value}" for name, value in params.items()))
    target = ("data.target=data_video.VideoDataset",)
    whole = checked(train(tmp_path / "whole", shards, ranks=2, flags=(*flags, *target)))
    assert "11 clips" in whole.output
    stopped = train(tmp_path / "parts", shards, ranks=2, flags=(*flags, *target, "--train-iters", "3"))
    resume = ("--resume", str(checked(stopped).folder))
    resumed = checked(train(tmp_path / "parts", shards, ranks=2, flags=(*flags, *target, *resume)))
    assert resumed.losses == whole.losses
    last = [torch.load(run.checkpoint(6), map_location="cpu", weights_only=True)["module"] for run in (resumed, whole)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])
