"""Finished files in their place.

Truths checked: identity (whole or nothing; nothing but converted weights is replaced), golden messages.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.checkpoint.packages import DIFFUSERS_LAYOUT, LORA_LAYOUT, SAT_LAYOUT, VAE_LAYOUT
from cogvideox.checkpoint.placing import Layout, placed
from cogvideox.errors import UserError


def put(target: Path, text: str, replace: bool = False, bytes_wanted: int = 1) -> None:
    with placed(target, DIFFUSERS_LAYOUT, replace, bytes_wanted) as folder:
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
    with pytest.raises(ZeroDivisionError), placed(target, DIFFUSERS_LAYOUT, True, 1) as folder:
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
    with pytest.raises(UserError, match=rf"holds other things than converted weights.*\({name}\)"):
        put(tmp_path / "model", "one", replace=True)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (DIFFUSERS_LAYOUT, "transformer/config.json"),  # a whole package
        (DIFFUSERS_LAYOUT, "1/mp_rank_00_model_states.pt"),
        (SAT_LAYOUT, "config.json"),
        (SAT_LAYOUT, "1000/mp_rank_00_model_states.pt"),  # a run's
    ],
)
def test_another_layout_is_not_replaced(tmp_path: Path, layout: Layout, name: str) -> None:
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=rf"not replaced: .*\({name}\)"), placed(tmp_path / "model", layout, True, 1):
        pytest.fail("the body ran")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("layout", [DIFFUSERS_LAYOUT, SAT_LAYOUT, VAE_LAYOUT, LORA_LAYOUT])
def test_a_plain_file_is_not_replaced(tmp_path: Path, layout: Layout) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("mine")
    with pytest.raises(UserError, match="thesis.txt"), placed(file, layout, True, 1):
        pytest.fail("the body ran")
    assert file.read_text() == "mine"


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    put(tmp_path / "vae.pt", "mine")
    with (
        pytest.raises(UserError, match="vae.pt is a folder, but a file"),
        placed(tmp_path / "vae.pt", VAE_LAYOUT, True, 1),
    ):
        pytest.fail("the body ran")


def test_weight_files_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    for text in ("one", "two"):
        with placed(file, LORA_LAYOUT, True, 1) as incomplete:
            incomplete.write_text(text)
        assert file.read_text() == text


def test_a_link_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    put(tmp_path / "link", "two", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="model could not be written: .*file"):
        put(tmp_path / "file" / "model", "one")
    with pytest.raises(UserError, match="No space left"), placed(tmp_path / "m", DIFFUSERS_LAYOUT, False, 1) as folder:
        folder.mkdir()
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GB free, 1000000000.0 GB are to be written"):
        put(tmp_path / "model", "one", bytes_wanted=10**18)
    assert not (tmp_path / "model").exists()
