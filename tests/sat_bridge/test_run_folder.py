"""Truths: a run's folder is new or the resumed one, mistakes are named, a failed start leaves nothing."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cogvideox.checkpoint import saving
from cogvideox.checkpoint.manifest import MANIFEST
from cogvideox.errors import UserError
from cogvideox.parallel import Group
from cogvideox.sat_bridge import run_folder
from cogvideox.sat_bridge.run_folder import make_run_folder, remove_if_empty

ROOT = Path(__file__).resolve().parents[2]


def arguments(save: Path, **changes: object) -> argparse.Namespace:
    values = {"save": str(save), "experiment_name": "trial", "load": None, "mode": "finetune", "resume": None}
    return argparse.Namespace(**(values | changes))


def test_two_runs_in_one_minute_get_two_folders(tmp_path: Path) -> None:
    made = [make_run_folder(arguments(tmp_path)) for _ in range(3)]
    assert len(set(made)) == 3 and all(folder.name.startswith("trial-") for folder in made)


def test_pretraining_from_loaded_weights_never_writes_into_their_folder(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    folder = make_run_folder(arguments(tmp_path, load=str(earlier), mode="pretrain"))
    assert folder.name.startswith("trial-") and not list(earlier.iterdir())


def saved(run: Path, *numbers: int, age: int = 0) -> Path:
    """A run with whole checkpoints, whose last save was `age` seconds before others'."""
    for number in numbers:
        content = {"module": {"w": torch.zeros(1)}}
        run.mkdir(parents=True, exist_ok=True)
        saving.store(saving.Snapshot(number, {"mp_rank_00_model_states.pt": content}), run, Group())
    os.utime(run / "latest", (1000 - age, 1000 - age))
    return run


@pytest.fixture(autouse=True)
def no_locks_stay() -> Iterator[None]:
    yield
    for run in list(run_folder._held):
        run_folder.release(run)


def test_a_run_is_resumed_in_its_own_folder_wherever_it_is(tmp_path: Path) -> None:
    other = saved(tmp_path / "elsewhere" / "renamed", 1, 3)
    args = arguments(tmp_path / "save", resume=str(other))
    assert make_run_folder(args) == other and (args.save, args.resume) == (str(other.parent), str(other / "3"))


def test_one_checkpoint_of_a_run_can_be_named(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", 1, 2, 3)
    args = arguments(tmp_path, resume=str(run / "2"))
    assert make_run_folder(args) == run and args.resume == str(run / "2")


def test_auto_takes_the_newest_checkpoint_of_this_experiment_or_starts_afresh(tmp_path: Path) -> None:
    for age, name in enumerate(("trial-longer-01-02-03-03", "trial-01-02-03-01", "trial-01-02-03-02")):
        saved(tmp_path / name, 3, age=age)
    (tmp_path / "trial-01-02-03-04").mkdir()  # never saved
    assert make_run_folder(arguments(tmp_path, resume="auto")) == tmp_path / "trial-01-02-03-01"
    fresh = arguments(tmp_path / "empty", resume="auto")
    assert make_run_folder(fresh).parent == tmp_path / "empty" and fresh.resume is None


def test_a_run_without_latest_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    run = saved(tmp_path / "trial-01-02-03-01", 1, 2)
    (run / "latest").unlink()
    for resume in ("auto", str(run)):
        args = arguments(tmp_path, resume=resume)
        assert make_run_folder(args) == run and args.resume == str(run / "2")


def test_auto_says_aloud_that_it_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = saved(tmp_path / "trial-01-02-03-01", 1)
    damage(run / "1")
    assert make_run_folder(arguments(tmp_path, resume="auto")) != run
    assert "A NEW RUN BEGINS" in caplog.text


def damage(checkpoint: Path) -> None:
    file = checkpoint / "mp_rank_00_model_states.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_auto_passes_over_damaged_checkpoints_and_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest, older = saved(tmp_path / "trial-01-02-03-02", 1, 2, 3), saved(tmp_path / "trial-01-02-03-01", 7, age=9)
    damage(newest / "3")
    (newest / "2" / MANIFEST).unlink()
    args = arguments(tmp_path, resume="auto")
    assert make_run_folder(args) == newest and args.resume == str(newest / "1")
    assert "is not what was saved" in caplog.text and f"has no {MANIFEST}" in caplog.text
    damage(newest / "1")
    assert make_run_folder(arguments(tmp_path, resume="auto")) == older


def test_a_damaged_checkpoint_that_is_named_is_refused_with_the_one_before_it(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", 1, 2, 3)
    damage(run / "3")
    for named in (run, run / "3"):
        with pytest.raises(UserError, match=rf"3 is damaged: .* take the one before it: --resume {run}/2"):
            make_run_folder(arguments(tmp_path, resume=str(named)))


def test_two_jobs_cannot_go_on_in_one_run(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", 1)
    command = (
        "import sys; from pathlib import Path; from cogvideox.sat_bridge.run_folder import hold; "
        f"hold(Path({str(run)!r})); print('held', flush=True); sys.stdin.read()"
    )
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, **streams) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid} on "):
            make_run_folder(arguments(tmp_path, resume=str(run)))
        other.kill()  # with it goes its lock
        other.wait()
    assert make_run_folder(arguments(tmp_path, resume=str(run))) == run


def test_nothing_to_resume_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        make_run_folder(arguments(tmp_path, resume=str(tmp_path / "nowhere")))


def test_a_save_path_that_is_a_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="args.save"):
        make_run_folder(arguments(tmp_path / "file"))


def test_an_empty_folder_is_taken_back_and_a_used_one_kept(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("")
    for name in ("empty", "used", "never"):
        remove_if_empty(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
