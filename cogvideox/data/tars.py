"""Tar files read by place: where each sample's members lie, and the bytes of one of them. Nothing is ever extracted.

A shard comes from whoever made it: names in it are never used as paths, links and devices in it are passed over, and
what its headers say of sizes is believed only as far as the file has bytes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from fsspec.core import url_to_fs
from webdataset.tariterators import group_by_keys

from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.shards import PIPE, Shard
from cogvideox.errors import UserError

LONGEST_NAME = 1024
LARGEST_HEADER = 1 << 20
LARGEST_MEMBER = 2_000_000_000
"""Bytes of a video that are taken into memory at once."""

LARGEST_SHARD = 1 << 60
HEADER_BLOCK = 1 << 16
"""Bytes that are fetched with each header of a remote shard."""

KEPT_PIPES = 2
"""Shards from commands that a process keeps (in unnamed temporary files)."""

NOTHING = (-1, 0)


@dataclass(frozen=True)
class TarIndex:
    """Samples of a shard, in its order: `keys` and `places` int64 (samples, suffixes, 2): offset and size, NOTHING
    where a sample has no such member. `fault`: why the shard could not be read to its end.
    """

    keys: list[str]
    places: np.ndarray
    fault: str | None = None


class ShardReader:
    """Opens shards wherever they are. Processes that fork may share one."""

    def __init__(self) -> None:
        self._pipes: dict[tuple[int, str], IO[bytes]] = {}
        self._broken: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"_pipes": {}, "_broken": set()}

    def prepare(self, shard: Shard) -> None:
        """Have a shard at hand, which takes long where a command prints it. Raises UnreadableVideo."""
        if shard.is_pipe:
            with self._open(shard):
                pass

    def beside(self, shard: Shard, name: str) -> bytes | None:
        """The file `name` that lies beside a shard; None where there is none."""
        if shard.is_pipe:
            return None
        if not shard.is_remote:
            path = Path(shard.place).parent / name
            try:
                return path.read_bytes() if path.is_file() else None
            except OSError as error:
                raise UnreadableVideo(f"has a list {name} beside its shard that cannot be read") from error
        with _remote_faults(shard):
            system, path_there = url_to_fs(shard.place.rpartition("/")[0] + "/" + name)
            return system.cat_file(path_there) if system.exists(path_there) else None

    def index(self, shard: Shard, suffixes: Sequence[str]) -> TarIndex:
        """Where the members with these `suffixes` lie, by sample, grouped as webdataset does. Reads headers only."""
        faults: list[str] = []
        samples: list[tuple[str, list[tuple[int, int]]]] = []
        try:
            with self._open(shard) as file:
                for sample in group_by_keys(_members(file, faults), handler=lambda _: True):
                    samples.append((sample["__key__"], [sample.get(suffix, NOTHING) for suffix in suffixes]))
        except UnreadableVideo as error:
            faults.append(str(error))
        places = np.array([each for _, each in samples], dtype=np.int64).reshape(-1, len(suffixes), 2)
        return TarIndex([key for key, _ in samples], places, faults[0] if faults else None)

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """A member's bytes. Raises UnreadableVideo."""
        if size > LARGEST_MEMBER:
            raise UnreadableVideo(f"has {size:,} bytes; at most {LARGEST_MEMBER:,} are read into memory")
        if shard.is_remote:
            with _remote_faults(shard):
                system, path = url_to_fs(shard.place)
                content = system.cat_file(path, start=offset, end=offset + size)
                if len(content) > size:
                    raise UnreadableVideo("cannot be fetched: its server does not give parts of files (byte ranges)")
        else:
            with self._open(shard) as file:
                # Not by seeking: threads share the file of a command.
                content = os.pread(file.fileno(), size, offset)
        if len(content) != size:
            raise UnreadableVideo(f"came with {len(content):,} bytes where its shard promises {size:,}")
        return content

    @contextmanager
    def _open(self, shard: Shard) -> Iterator[IO[bytes]]:
        """A file with random access. What goes wrong in the system while it is open → UnreadableVideo."""
        try:
            if shard.is_pipe:
                yield self._spooled(shard.place)
            elif shard.is_remote:
                with _remote_faults(shard):
                    system, path = url_to_fs(shard.place)
                    with system.open(path, "rb", block_size=HEADER_BLOCK, cache_type="readahead") as file:
                        yield file
            else:
                with open(shard.place, "rb") as file:
                    yield file
        except OSError as error:
            what = "its command failed" if shard.is_pipe else error.strerror or type(error).__name__
            raise UnreadableVideo(f"cannot be read from its shard ({what})") from error

    def _spooled(self, command: str) -> IO[bytes]:
        """What a `pipe:` command prints, in a temporary file without a name. Each process runs it for itself."""
        key = (os.getpid(), command)
        if key not in self._pipes:
            if command in self._broken:
                raise OSError("failed before")
            while len(self._pipes) >= KEPT_PIPES:
                self._pipes.pop(next(iter(self._pipes))).close()
            file = tempfile.TemporaryFile()
            try:
                _run_into(command, file)
            except OSError:
                self._broken.add(command)
                raise
            self._pipes[key] = file
        self._pipes[key].seek(0)
        return self._pipes[key]


def _run_into(command: str, file: IO[bytes]) -> None:
    """What a `pipe:` command prints into `file`. No shell sees it: words are split, and nothing in them is expanded.

    Raises OSError: it cannot be started, or fails.
    """
    try:
        words = shlex.split(command.removeprefix(PIPE))
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, check=False)
    except (ValueError, IndexError) as error:  # a quote that is not closed, no words, a NUL character
        raise OSError(f"is no command ({error})") from error
    if done.returncode:
        raise OSError(f"ended with status {done.returncode}")


class _Headers:
    """A file as tarfile reads headers from it: those that a tar continues with long names are limited in size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Raises tarfile.ReadError."""
        if size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _members(file: IO[bytes], faults: list[str]) -> Iterator[dict[str, Any]]:
    """The plain files in a tar, as webdataset's `group_by_keys` takes them, with places for data."""
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Headers(file)), mode="r:") as tar:
            end = -1
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # they would pile up
                if member.offset_data <= end or not 0 <= member.size <= LARGEST_SHARD:
                    raise tarfile.ReadError("a header gives a place that cannot be")
                end = member.offset_data
                if member.isreg() and member.sparse is None and len(member.name) <= LONGEST_NAME:
                    yield {"fname": _printable(member.name), "data": (member.offset_data, member.size), "__url__": ""}
    # Python's tarfile raises ValueError and OverflowError for numbers in headers that make no sense.
    except (tarfile.TarError, ValueError, OverflowError) as error:
        faults.append(f"is no uncompressed tar file, or damaged ({error})")


def _printable(name: str) -> str:
    """A name that messages and logs can hold: terminal codes, newlines and bytes that are not UTF-8 are spelled out."""
    return name if name.isprintable() else ascii(name)[1:-1]


@contextmanager
def _remote_faults(shard: Shard) -> Iterator[None]:
    """Whatever a remote store's client raises → UnreadableVideo, without its text, which often holds signatures."""
    try:
        yield
    except UnreadableVideo:
        raise
    except ImportError as error:
        package = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}.get(shard.place.partition("://")[0], error.name)
        raise UserError(f"{shard.name} needs a package that is missing: pip install {package}") from error
    except ValueError as error:
        raise UserError(f"{shard.name} cannot be opened by fsspec ({type(error).__name__})") from error
    except Exception as error:
        raise UnreadableVideo(f"cannot be fetched ({type(error).__name__})") from error
