"""Tiny tar shards of painted clips, made by the tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.data.painted import even_times, write_painted


def clip_bytes(folder: Path, frames: int = 12, fps: int = 8) -> bytes:
    """A clip whose frame n shows n; made once in `folder`."""
    path = folder / f"clip-{frames}-{fps}.mp4"
    if not path.exists():
        write_painted(path, even_times(fps, frames))
    return path.read_bytes()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, video: bytes, caption: str | None = None) -> dict[str, bytes]:
    """A sample as most people keep it: the caption, its key where none is given, under `caption` in a .json."""
    text = json.dumps({"caption": caption or key, "width": 96})
    return {f"{key}.mp4": video, f"{key}.json": text.encode()}


def write_shards(folder: Path, sizes: tuple[int, ...] = (3, 2, 4, 2)) -> Path:
    """Shards 000.tar, … with so many samples, captioned `s0-0`, `s0-1`, …; → the folder."""
    video = clip_bytes(folder.parent)
    for number, size in enumerate(sizes):
        members: dict[str, bytes] = {}
        for place in range(size):
            members |= sample(f"s{number}-{place}", video)
        write_tar(folder / f"{number:03d}.tar", members)
    return folder
