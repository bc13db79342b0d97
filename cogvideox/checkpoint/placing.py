"""Put a finished file or folder in its place, so that a reader sees the whole of it or nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cogvideox.checkpoint.durable import sync
from cogvideox.errors import UserError


@dataclass(frozen=True)
class Layout:
    """What is written: a folder, or a file; `pattern` matches the paths in the folder, or the file's name, whole."""

    pattern: str
    is_folder: bool = True

    def others(self, target: Path) -> list[str]:
        """What stands at `target` that is not of this layout, by its path in there."""
        if not self.is_folder:
            return [] if re.fullmatch(self.pattern, target.name) else [target.name]
        paths = [path for path in target.rglob("*") if path.is_symlink() or not path.is_dir()]
        names = [path.relative_to(target).as_posix() for path in paths]
        return [name for name in sorted(names) if not re.fullmatch(self.pattern, name)]


@contextmanager
def placed(target: Path, layout: Layout, replace: bool, bytes_wanted: int) -> Iterator[Path]:
    """A temporary path beside `target` to write to, a file or a folder, which gets its name at the end.

    A link is followed, and stays. Where the body fails, the temporary path is removed, and what stood at `target`
    stays. UserError, before the body runs: `target` exists and is not to be replaced, or is anything but what `layout`
    writes; there is not enough room. And at any time: it cannot be written.
    """
    target = Path(os.path.realpath(target))
    try:
        with _placed(target, layout, replace, bytes_wanted) as incomplete:
            yield incomplete
    except OSError as error:
        raise UserError(f"{target} could not be written: {error}") from error


@contextmanager
def _placed(target: Path, layout: Layout, replace: bool, bytes_wanted: int) -> Iterator[Path]:
    check_free(target, layout, replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if bytes_wanted > free:
        raise UserError(
            f"{target.parent} has {free / 1e9:.1f} GB free, {bytes_wanted / 1e9:.1f} GB are to be written: "
            "make room, or write elsewhere"
        )
    incomplete = target.with_name(f"{target.name}.incomplete.{os.getpid()}")
    try:
        yield incomplete
        for each in [*incomplete.rglob("*"), incomplete]:
            sync(each)
        _exchange(incomplete, target)
    finally:
        _remove(incomplete)


def check_free(target: Path, layout: Layout, replace: bool) -> None:
    """UserError: something that may not be replaced stands at `target`."""
    if not target.exists():
        return
    if target.is_dir() != layout.is_folder:
        found, wanted = ("folder", "file") if target.is_dir() else ("file", "folder")
        raise UserError(f"{target} is a {found}, but a {wanted} is to be written: give another name")
    if layout.is_folder and not any(target.iterdir()):
        return
    if not replace:
        raise UserError(f"{target} is there already: give another name, or --force to replace it")
    others = layout.others(target)
    if others:
        raise UserError(
            f"{target} is not replaced: it holds other things than converted weights of the kind that is to be "
            f"written ({others[0]}); give another name"
        )


def _exchange(new: Path, target: Path) -> None:
    old = target.with_name(f"{target.name}.replaced.{os.getpid()}")
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
