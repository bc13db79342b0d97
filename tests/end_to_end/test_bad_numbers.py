"""Losses and gradients that are not finite. Truths: the ranks stay in step; a run that went back repeats its numbers to
the bit, and a resumed one too; the bundle computes the same on one device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cogvideox.config.targets import allowed_modules
from cogvideox.telemetry.metrics_file import read_metrics
from tests.end_to_end.runs import CACHED, Run, train
from tools.replay import main as replay

BAD_NETWORK = {"model": {"network_wrapper": "tests.end_to_end.bad_network.BadNetwork"}}
LOSS, GRADIENTS = "the loss is not finite", "the gradients are not finite"


def trained(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: str,
    *,
    stage: int = 2,
    ranks: int = 2,
    flags: tuple[str, ...] = (),
    **args: Any,
) -> Run:
    """A run that saves every other iteration of four, whose forwards go wrong as `bad` says."""
    monkeypatch.setenv("BAD_FORWARDS", bad)
    deepspeed = {"zero_optimization": {"stage": stage}, "optimizer": {"type": "EmaAdamW"}}
    changes = {"args": {"train_iters": 4, "save_interval": 2, "max_bad_steps": 2, **args}, "deepspeed": deepspeed}
    return train(folder, BAD_NETWORK, CACHED, changes, ranks=ranks, flags=("--allow-target", "tests", *flags))


def about_data(run: Run) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.folder / "metrics.jsonl") if line.get("split") == "data"]


def replayed(bundle: Path, monkeypatch: pytest.MonkeyPatch, bad: str = "", *arguments: str) -> int:
    monkeypatch.setenv("BAD_FORWARDS", bad)
    monkeypatch.setattr(allowed_modules, "names", [])
    return replay([str(bundle), "--allow-target", "tests", *arguments])


def test_bad_steps_are_left_out_told_and_do_not_come_again_in_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, monkeypatch, "1:loss:2 0:gradients:3", max_bad_steps=3)
    assert run.status == 0, run.output[-3000:]
    told = about_data(run)
    # Gradients are summed over the ranks before they are looked at: either may have been the one.
    assert [(line["iteration"], line["rank"], line["kind"]) for line in told] == [
        (2, 1, LOSS),
        (2, 0, GRADIENTS),
        (2, 1, GRADIENTS),
    ]
    assert all(line["clips"].startswith("videos/") and 0 <= int(line["timesteps"]) < 1000 for line in told)
    assert [(line["iteration"], line.get("skipped_steps", 0)) for line in run.metrics] == [
        (1, 0),
        (2, 2),
        (3, 2),
        (4, 2),
    ]
    assert not list(run.folder.glob("bad-step-*"))
    losses, checkpoint = run.losses, run.folder / "2"
    resumed = trained(tmp_path, monkeypatch, "", flags=("--resume", str(checkpoint)))
    assert resumed.status == 0, resumed.output[-3000:]
    assert resumed.losses == losses and resumed.metrics[-1]["skipped_steps"] == 2


@pytest.mark.parametrize(("stage", "bad"), [(0, "1:loss:4 1:loss:5"), (3, "1:loss:4 0:gradients:5")])
def test_a_run_goes_back_and_on_without_the_bad_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: int, bad: str
) -> None:
    run = trained(tmp_path, monkeypatch, bad, stage=stage)
    assert run.status == 0, run.output[-3000:]
    assert run.output.count("2 steps in a row: back to iteration 2") == 1
    thirds = [line.partition("| lr")[0].partition("iteration 3/4")[2] for line in run.output.splitlines()]
    assert len(set(filter(None, thirds))) == 1 and len(list(filter(None, thirds))) == 2
    assert [line["iteration"] for line in run.metrics] == [1, 2, 3, 4]
    # Both bad batches once, and once more when they were passed over.
    assert (run.metrics[-1]["skipped_steps"], run.metrics[-1]["skipped_batches"]) == (2, 4)
    (went_back,) = about_data(run)
    assert (went_back["iteration"], went_back["kind"]) == (2, "went back")
    (bundle,) = run.folder.glob("bad-step-4")
    assert went_back["bundle"] == str(bundle)
    assert replayed(bundle, monkeypatch) == 0
    assert ("In training its loss was nan" in capsys.readouterr().out) == (stage == 0)
    assert replayed(bundle, monkeypatch, "0:gradients:1 1:loss:1") == 1


def test_a_run_that_goes_wrong_again_ends_with_what_replays_to_the_same_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, monkeypatch, "1:loss:4-")
    assert run.status == 1 and "Traceback" not in run.output, run.output[-3000:]
    (last,) = [line for line in run.output.splitlines() if "the run went back to iteration 2 before" in line]
    assert (run.folder / "latest").read_text() == "2"
    bundles = [run.folder / f"bad-step-{iteration}" for iteration in (4, 3)]
    assert all(bundle.is_dir() for bundle in bundles) and f"python tools/replay.py {bundles[1]}" in last
    assert replayed(bundles[1], monkeypatch, "1:loss:1") == 0
    out = capsys.readouterr().out
    assert "rank 1 of 2" in out and "nan" in out and "came out the same" in out
    assert replayed(bundles[1], monkeypatch, "1:gradients:1") == 1
    assert replayed(bundles[1], monkeypatch, "1:loss:1", "--rank", "0") == 2
    assert "does not have rank 0: it has 1" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_ends_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path, monkeypatch, "0:loss:1-", ranks=1, stage=0)
    assert run.status == 1 and "Traceback" not in run.output, run.output[-3000:]
    (last,) = [line for line in run.output.splitlines() if "there is no checkpoint yet" in line]
    assert last.startswith("iteration 1: the loss is not finite, 2 steps in a row; ")
    assert str(run.folder / "bad-step-1") in last and "--quarantine" in last
