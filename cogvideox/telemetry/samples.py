"""The videos that evaluations left in a run's folder, by iteration, kind and number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

KINDS = ("inputs", "reconstructions", "samples")
"""In the order in which they are shown; other kinds follow by name."""

_FOLDER = re.compile(r"(?P<kind>.+)_gs-(?P<iteration>\d+)")
_FILE = re.compile(r"(?P<number>\d+)\.mp4")


@dataclass(frozen=True)
class Samples:
    """One evaluation's videos. `rows`: a caption (None where none was written), and per kind a path in the folder."""

    iteration: int
    kinds: tuple[str, ...]
    rows: tuple[tuple[str | None, dict[str, Path]], ...]


def last_samples(run_folder: Path) -> Samples | None:
    """The latest iteration with `samples`, or with any video where no iteration has them; None without videos."""
    by_iteration: dict[int, dict[str, dict[int, Path]]] = {}
    for folder in sorted(run_folder.glob("video/*_gs-*")):
        named = _FOLDER.fullmatch(folder.name)
        videos = _numbered_videos(folder) if named else {}
        if named and videos:
            by_iteration.setdefault(int(named["iteration"]), {})[named["kind"]] = videos
    if not by_iteration:
        return None
    sampled = [each for each, found in by_iteration.items() if "samples" in found]
    iteration = max(sampled or by_iteration)
    found = by_iteration[iteration]
    kinds = sorted(found, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))
    captions = _captions(run_folder, iteration)
    rows = []
    for number in sorted({number for videos in found.values() for number in videos}):
        paths = {kind: found[kind][number].relative_to(run_folder) for kind in kinds if number in found[kind]}
        rows.append((captions[number] if number < len(captions) else None, paths))
    return Samples(iteration, tuple(kinds), tuple(rows))


def _numbered_videos(folder: Path) -> dict[int, Path]:
    matches = ((_FILE.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(named["number"]): path for named, path in matches if named}


def _captions(run_folder: Path, iteration: int) -> list[str]:
    """One caption a line, as the evaluation step writes them."""
    path = run_folder / "video_texts" / f"{iteration:08d}"
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
