"""Answers about files that are found once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.data.once import COST_OF_ANY, Once
from cogvideox.data.reading import UnreadableVideo


def test_answers_are_kept_as_long_as_there_is_room(tmp_path: Path) -> None:
    """Golden values: room for two; the one that was not asked for longest goes. A fault is kept as well."""
    asked: list[str] = []

    def find(path: Path) -> str:
        asked.append(path.name)
        if path.name == "bad":
            raise UnreadableVideo("is bad")
        return path.name

    for name in ("a", "b", "bad"):
        (tmp_path / name).touch()
    once = Once(find, len, 2 * COST_OF_ANY + 2)
    assert [once.of(tmp_path / name) for name in "abba"] == ["a", "b", "b", "a"] and asked == ["a", "b"]
    for _ in range(2):
        with pytest.raises(UnreadableVideo, match="is bad"):
            once.of(tmp_path / "bad")
    assert asked == ["a", "b", "bad"]
    assert [once.of(tmp_path / name) for name in "aba"] == ["a", "b", "a"] and asked[3:] == ["b"]
