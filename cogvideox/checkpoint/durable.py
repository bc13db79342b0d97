"""The one door for every file operation of a save: what has been written is on the disk, and not only on its way there.

All of these raise OSError.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cogvideox.progress import tick

READ_BYTES = 1 << 22
DELETED = ".deleted"  # what the name of a folder ends with that is being deleted
MIB, GIB = 1 << 20, 1 << 30
SYNC_BYTES = GIB  # what is written in between: the wait at a file's end is short, and seen to get on


class Written(NamedTuple):
    """A file's size in bytes and the SHA-256 of its content, in hexadecimal digits."""

    size: int
    sha256: str


class Hashing:
    """A file to write into that hashes what passes, large blocks in a thread beside the writing; for writers that go
    from front to back, as torch.save does. To be used in a `with`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._size, self._synced = file, hashlib.sha256(), 0, 0
        self._thread = ThreadPoolExecutor(1)

    def write(self, data: Any) -> int:
        """All of `data` (bytes-like), or OSError."""
        view = memoryview(data).cast("B")
        if len(view) < READ_BYTES:
            self._digest.update(view)
            done = self._file.write(view)
        else:
            hashed = self._thread.submit(self._digest.update, view)
            try:
                done = self._file.write(view)
            finally:
                hashed.result()  # the writer uses the block's memory again
        if done != len(view):
            raise OSError(f"{self._file.name}: only {done} of {len(view)} bytes could be written")
        self._size += done
        if self._size - self._synced >= SYNC_BYTES:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._synced = self._size
        tick("bytes of a checkpoint")
        return done

    def flush(self) -> None:
        """Nothing: the file is flushed at its end."""

    @property
    def written(self) -> Written:
        """What has passed so far."""
        return Written(self._size, self._digest.hexdigest())

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()


def in_units(size: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def open_file(path: Path) -> BinaryIO:
    """A new file to write."""
    return path.open("xb")


def write_file(path: Path, write: Callable[[Any], None]) -> Written:
    """A new file with what `write(file)` writes, on the disk when this returns."""
    with open_file(path) as file, Hashing(file) as hashing:
        write(hashing)
        file.flush()
        os.fsync(file.fileno())
        return hashing.written


def hash_file(path: Path) -> Written:
    """Of a file that is there, by reading it."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            size += len(block)
            tick("bytes of a checkpoint")
    return Written(size, digest.hexdigest())


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, name: Path) -> None:
    """Give a file or folder another name, in place of a file of that name, durably."""
    os.replace(path, name)
    sync(name.parent)


def replace_text(path: Path, text: str) -> None:
    """A file that holds `text`, in one move: a reader, and a crash, see what was there before or all of it."""
    aside = path.with_name(f"{path.name}.incomplete")
    aside.unlink(missing_ok=True)
    write_file(aside, lambda file: file.write(text.encode()))
    rename(aside, path)


def make_folder(path: Path) -> None:
    """A new folder; its parents too."""
    path.mkdir(parents=True)


def remove_folder(path: Path) -> None:
    """A folder with all that is in it, if there is one; under another name first, so that no half passes for it."""
    if path.exists():
        condemned = unused(path.with_name(path.name + DELETED))
        rename(path, condemned)
        shutil.rmtree(condemned)


def free_name(path: Path) -> None:
    """As `remove_folder`, but what of it cannot be deleted (somebody has a file open on NFS) is left under its other
    name: nothing needs that one.
    """
    try:
        remove_folder(path)
    except OSError:
        if path.exists():
            raise


def failure_of(function: Callable[[], object], folder: Path | None = None) -> str | None:
    """Why the file system did not let `function` do its work (in `folder`, if it does not say where); None if it did.

    torch's writer still wants to end a file after a write of it has failed, and fails again, by a RuntimeError.
    """
    try:
        function()
    except OSError as error:
        return in_words(error, folder)
    except RuntimeError as error:
        cause = error.__context__
        if cause is None:
            raise
        return in_words(cause, folder) if isinstance(cause, OSError) else f"{folder or 'a write'}: {error}"
    return None


def in_words(error: OSError, folder: Path | None = None) -> str:
    """What failed where."""
    where = error.filename or folder
    return f"{where}: {error.strerror or error}" if where else str(error.strerror or error)


def unused(path: Path) -> Path:
    """`path`, or `path-2`, `path-3` and so on: the first that is not there."""
    names = chain([path], (path.with_name(f"{path.name}-{number}") for number in count(2)))
    return next(name for name in names if not name.exists())
