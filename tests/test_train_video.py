"""Truths: multi-view clips keep their captions, bf16 metrics become float32, the config is written once."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import train_video
from cogvideox.sat_bridge.timers import Timers

ROOT = Path(train_video.__file__).parent
COMMANDS = ("benchmark", "compare_samples", "convert_checkpoint", "fetch_weights", "verify_checkpoint")


def multi_view(samples: int = 2, views: int = 3) -> dict[str, Any]:
    """A batch whose every frame says which sample and view it is of, as torch's collation makes it."""
    marks = torch.arange(samples * views, dtype=torch.float32).view(samples, views, 1, 1, 1, 1)
    return {
        "mp4": marks.expand(samples, views, 5, 3, 16, 16),
        "txt": [[f"sample {s} view {v}" for s in range(samples)] for v in range(views)],
        "num_frames": torch.tensor([5, 1]),
        "fps": torch.tensor([8, 16]),
    }


def test_views_become_samples_in_the_order_of_their_captions() -> None:
    flat = train_video.flatten_views(multi_view())
    assert flat["mp4"].shape == (6, 5, 3, 16, 16)
    for place, text in enumerate(flat["txt"]):
        sample, view = divmod(place, 3)
        assert text == f"sample {sample} view {view}" and flat["mp4"][place].unique().tolist() == [place]
    assert flat["fps"].tolist() == [8, 8, 8, 16, 16, 16] and flat["num_frames"].tolist() == [5, 5, 5, 1, 1, 1]


class Model:
    """Answers as an engine does and remembers the batch that it was asked about."""

    def __init__(self) -> None:
        self.batch: dict[str, Any] = {}

    def log_video(self, batch: dict[str, Any], only_log_video_latents: bool = False) -> dict[str, torch.Tensor]:
        assert not only_log_video_latents
        return {"samples": batch["mp4"] / 3 - 1}

    def shared_step(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.batch = batch
        loss = torch.tensor(0.5, dtype=torch.bfloat16)
        return loss, {"loss": loss}


def arguments(folder: Path) -> argparse.Namespace:
    merged = {"args": {"train_iters": 7}}
    return argparse.Namespace(
        save=str(folder), iteration=4, zero_stage=2, eval_batch=0, eval_split="val", merged_config=merged
    )


def test_an_evaluation_step_saves_videos_with_captions_and_gives_float32_metrics(tmp_path: Path) -> None:
    model, told = Model(), []
    loss, metrics = train_video.forward_step_eval(
        iter([multi_view()]), model, arguments(tmp_path), Timers(), report_videos=lambda *call: told.append(call)
    )
    assert metrics["loss"].dtype == torch.float32 and loss.item() == 0.5
    assert model.batch["mp4"].shape[0] == 6 and model.batch["global_step"] == 4
    assert len(list((tmp_path / "video" / "samples_gs-000004").glob("*.mp4"))) == 6
    assert (tmp_path / "video_texts" / "00000004").read_text().splitlines()[4] == "sample 1 view 1"
    ((iteration, files, fps),) = told
    assert (iteration, fps, len(files["samples"])) == (4, 8, 6)


def test_samples_that_cannot_be_written_do_not_end_the_evaluation(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "video").write_text("a file where the folder should be")
    told: list[Any] = []
    loss, _ = train_video.forward_step_eval(
        iter([multi_view()]), Model(), arguments(tmp_path), Timers(), report_videos=lambda *call: told.append(call)
    )
    assert loss.item() == 0.5 and not told
    assert "the samples of iteration 4 are not all saved" in caplog.text


def test_a_training_step_writes_the_merged_config_once(tmp_path: Path) -> None:
    batch = {"mp4": torch.zeros(1, 5, 3, 16, 16), "txt": ["x"], "num_frames": torch.ones(1), "fps": torch.ones(1)}
    args, model, timers = arguments(tmp_path), Model(), Timers()
    loss, _ = train_video.forward_step(iter([batch]), model, args, timers)
    assert loss.item() == 0.5 and yaml.safe_load((tmp_path / "training_config.yaml").read_text()) == args.merged_config
    args.merged_config = {"changed": True}
    train_video.forward_step(iter([batch]), model, args, timers)
    assert "changed" not in (tmp_path / "training_config.yaml").read_text()
    assert timers("data loader").elapsed() >= 0


def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch: Any) -> None:
    seen = SimpleNamespace(environ={})
    monkeypatch.setattr(train_video.os, "environ", seen.environ)
    assert train_video.main(["--base", "/nowhere.yaml"]) == 2
    assert seen.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    seen.environ["OMP_WAIT_POLICY"] = "ACTIVE"
    train_video.main(["--base", "/nowhere.yaml"])
    assert seen.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_mistake_is_told_by_one_rank_while_the_others_wait(monkeypatch: Any, capsys: Any) -> None:
    """A launcher ends all ranks when the first ends: a silent one that is faster would cut the message off."""
    waited: list[float] = []
    monkeypatch.setattr("cogvideox.config.launchers.time.sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert train_video.main(["--base", "/nowhere.yaml"]) == 2
    assert capsys.readouterr().err.count("/nowhere.yaml") == 1 and len(waited) == 1


@pytest.mark.parametrize("entry", ["train_video.py", "sample_video.py", *(f"tools/{name}.py" for name in COMMANDS)])
def test_a_python_without_the_packages_is_told_in_one_line(entry: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / entry), "--help"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "lacks torch, deepspeed" in done.stderr and ".venv/bin/activate" in done.stderr
