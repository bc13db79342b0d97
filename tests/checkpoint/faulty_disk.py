"""A disk that fails at one file operation of a save, chosen by its number; and one that only watches what is synced."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.checkpoint import durable, saving

ENOSPC, EIO, SHORT, CRASH_BEFORE, CRASH_HALFWAY, CRASH_AFTER = KINDS = (
    "ENOSPC", "EIO", "short", "crash before", "crash halfway", "crash after"
)  # fmt: skip
CRASHES = (CRASH_BEFORE, CRASH_HALFWAY, CRASH_AFTER)


class Crash(BaseException):
    """The process ends here: nothing after it reaches the disk."""


class FaultyDisk:
    """Counts the operations; the one with number `at` (from 0) fails as `kind` says. `only` leaves out other paths."""

    def __init__(self, at: int = -1, kind: str = EIO, only: str = "") -> None:
        self.at, self.kind, self.only = at, kind, only
        self.done: list[str] = []
        self.failed: str | None = None
        self._is_over = False

    def do(self, name: str, path: Path, operation: Callable[[], Any], half: Callable[[], Any]) -> Any:
        """Carry out an operation, or what the fault leaves of it."""
        if self._is_over:
            raise Crash
        if self.only not in str(path):
            return operation()
        number = len(self.done)
        self.done.append(f"{name} {path.name}")
        if number != self.at:
            return operation()
        self.failed = self.done[-1]
        if self.kind in (ENOSPC, EIO):
            code = getattr(errno, self.kind)
            named = () if name in ("write", "fsync") else (str(path),)  # as the system does
            raise OSError(code, os.strerror(code), *named)
        self._is_over = self.kind in CRASHES
        result = None
        if self.kind in (SHORT, CRASH_HALFWAY):
            result = half()
        if self.kind == CRASH_AFTER:
            operation()
        if self._is_over:
            raise Crash
        return result


class FaultyFile:
    """A file to write, without a buffer: what was written before a crash is there, and no more."""

    def __init__(self, disk: FaultyDisk, path: Path) -> None:
        self._disk, self._path, self.name = disk, path, str(path)
        self._file = path.open("xb", buffering=0)

    def write(self, data: Any) -> int:
        def part(length: int) -> int:
            return self._file.write(memoryview(data).cast("B")[:length])

        size = memoryview(data).nbytes
        return self._disk.do("write", self._path, lambda: part(size), lambda: part(size // 2))

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def path_of(descriptor: int) -> Path:
    """Of an open file."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def half_deleted(path: Path) -> None:
    """As a deletion that was interrupted leaves a folder."""
    for file in sorted(path.iterdir())[:1]:
        file.unlink()


@contextmanager
def installed(disk: FaultyDisk) -> Iterator[FaultyDisk]:
    """All file operations of a save go through `disk` inside the block; none waits for the real disk."""

    def nothing() -> None:
        return None

    def fsync(descriptor: int) -> None:
        disk.do("fsync", path_of(descriptor), nothing, nothing)

    def replace(path: Path, name: Path) -> None:
        disk.do("rename", name, lambda: os.replace(path, name), nothing)

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        try:
            disk.do("delete", path, lambda: shutil.rmtree(path, ignore_errors), lambda: half_deleted(path))
        except OSError:
            if not ignore_errors:
                raise

    def make_folder(path: Path) -> None:
        disk.do("make", path, lambda: path.mkdir(parents=True), nothing)

    def open_file(path: Path) -> Any:
        return disk.do("open", path, lambda: FaultyFile(disk, path), path.touch)

    system = SimpleNamespace(fsync=fsync, replace=replace, open=os.open, close=os.close, O_RDONLY=os.O_RDONLY)
    trees = SimpleNamespace(rmtree=rmtree, disk_usage=shutil.disk_usage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "os", system)
        patch.setattr(durable, "shutil", trees)
        patch.setattr(saving, "shutil", trees)
        patch.setattr(durable, "make_folder", make_folder)
        patch.setattr(durable, "open_file", open_file)
        yield disk
