"""Truths: a run's folder is new, SAT gets the same name, mistakes are named, a failed start leaves nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.sat_bridge.run_folder import RunClock, make_run_folder, remove_if_empty


def arguments(save: Path, **changes: object) -> argparse.Namespace:
    values = {"save": str(save), "experiment_name": "trial", "load": None, "mode": "finetune"}
    return argparse.Namespace(**(values | changes))


def test_two_runs_in_one_minute_get_two_folders_and_sat_composes_the_same_names(tmp_path: Path) -> None:
    made = [make_run_folder(arguments(tmp_path)) for _ in range(3)]
    assert len({folder for folder, _ in made}) == 3
    for folder, suffix in made:
        assert folder == tmp_path / f"trial-{RunClock(suffix).now().strftime('%m-%d-%H-%M')}"


def test_other_formats_of_the_clock_give_the_time() -> None:
    assert RunClock("x").now().strftime("%Y").isdigit()


def test_pretraining_goes_on_under_the_loaded_name(tmp_path: Path) -> None:
    folder, _ = make_run_folder(arguments(tmp_path, load=str(tmp_path / "earlier/"), mode="pretrain"))
    assert folder == tmp_path / "earlier"


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
