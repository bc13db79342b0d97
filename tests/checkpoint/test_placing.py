"""Finished files in their place.

Truths checked: identity (whole or nothing; nothing but converted weights is replaced), golden messages.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.checkpoint.placing import placed
from cogvideox.errors import UserError


def put(target: Path, text: str, replace: bool = False, bytes_wanted: int = 1) -> None:
    with placed(target, replace, bytes_wanted) as folder:
        folder.mkdir()
        (folder / "config.json").write_text(text)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    put(target, "one")
    assert (target / "config.json").read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    put(target, "one")
    with pytest.raises(ZeroDivisionError), placed(target, True, 1) as folder:
        folder.mkdir()
        (folder / "config.json").write_text("two")
        raise ZeroDivisionError
    assert (target / "config.json").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_replacing_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "model"
    put(target, "one")
    with pytest.raises(UserError, match="model is there already: give another name, or --force"):
        put(target, "two")
    put(target, "two", replace=True)
    assert (target / "config.json").read_text() == "two"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    put(tmp_path / "model", "one")
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.parametrize("name", ["notes.txt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "1000/film.mp4"])
def test_other_things_are_never_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=f"holds other things than converted weights .{path.name}"):
        put(tmp_path / "model", "one", replace=True)
    assert path.read_text() == "mine"


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GB free, 1000000000.0 GB are to be written"):
        put(tmp_path / "model", "one", bytes_wanted=10**18)
    assert not (tmp_path / "model").exists()
