"""Truths: a run's folder is new or the resumed one, mistakes are named, a failed start leaves nothing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.sat_bridge.run_folder import make_run_folder, remove_if_empty


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


def test_a_run_is_resumed_in_its_own_folder_wherever_it_is(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "renamed"
    other.mkdir(parents=True)
    (other / "latest").write_text("3")
    args = arguments(tmp_path / "save", resume=str(other))
    assert make_run_folder(args) == other and (args.save, args.resume) == (str(other.parent), str(other))


def test_auto_takes_the_newest_checkpoint_of_this_experiment_or_starts_afresh(tmp_path: Path) -> None:
    for age, name in enumerate(("trial-01", "trial-02", "other-03", "trial-04")):
        (tmp_path / name).mkdir()
        if name != "trial-04":  # never saved
            (tmp_path / name / "latest").write_text("3")
            os.utime(tmp_path / name / "latest", (1000 - age, 1000 - age))
    assert make_run_folder(arguments(tmp_path, resume="auto")) == tmp_path / "trial-01"
    fresh = arguments(tmp_path / "empty", resume="auto")
    assert make_run_folder(fresh).parent == tmp_path / "empty" and fresh.resume is None


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
