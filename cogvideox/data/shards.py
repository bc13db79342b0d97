"""Which tar files a stream consists of: what a user may write for them, and each one's place."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from cogvideox.data.formats.folder import walk
from cogvideox.errors import UserError

PIPE = "pipe:"
TAR_SUFFIX = ".tar"
LIST_SUFFIXES = (".txt", ".list", ".lst")
LISTED_SCHEMES = ("http", "https", "s3")
"""Schemes that a list file may name; a list may have come with a download."""

MOST_SHARDS = 1_000_000
"""That braces may stand for."""

SCHEMES = (*LISTED_SCHEMES, "memory")
"""What may be named at all; `memory` is fsspec's for what this process holds. Others of fsspec's start programs, log in
to other machines, or fill in templates of code.
"""

FORMS = (
    "give a .tar file, a folder of them, braces (shards/{000..123}.tar), a list file (.txt, a shard a line), an "
    "http(s):// or s3:// address, or pipe:COMMAND; several with commas between them"
)


@dataclass(frozen=True)
class Shard:
    """A tar file. `place`: a path, an address, or `pipe:` and a command; `name` is what messages call it."""

    place: str
    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def is_pipe(self) -> bool:
        return self.place.startswith(PIPE)

    @property
    def is_remote(self) -> bool:
        return not self.is_pipe and "://" in self.place


def find_shards(sources: str, include_dirs: str | None = None) -> list[Shard]:
    """The shards of `sources` (FORMS) and of the folders `include_dirs`, `DIR` or `DIR*2` for twice, commas between.

    A shard that is named more than once counts as often. A leading `;` in `sources` says that the rest is
    `include_dirs`. Raises one UserError that names every local shard, folder or list that is missing.
    """
    if sources.startswith(";"):
        sources, include_dirs = "", sources[1:]
    shards: list[Shard] = []
    faults: list[str] = []
    for source in split_sources(sources):
        if source.startswith(PIPE) and not sources.startswith(PIPE):
            faults.append(f"{source} is a command, and stands among other sources: give it alone")
        else:
            shards += _shards_of(source, faults)
    for entry in filter(None, map(str.strip, (include_dirs or "").split(","))):
        folder, _, times = entry.partition("*")
        if times and not times.isdigit():
            faults.append(f"{entry}: after * stands how often the folder counts, a whole number")
            continue
        shards += _shards_in(Path(folder), faults) * int(times or 1)
    if not shards and not faults:
        faults.append(f"{sources!r} names no shard")
    if faults:
        raise UserError(f"the shards to stream: {'; '.join(faults)} (args.train_data, args.valid_data): {FORMS}")
    return shards


def split_sources(sources: str) -> list[str]:
    """The parts of `sources` between commas, but not in braces. A path that exists or a command stays whole."""
    # os.path says of a text that is too long for a name that no such file exists; pathlib raises.
    if sources.startswith(PIPE) or os.path.exists(sources):
        return [sources]
    parts, depth = [""], 0
    for letter in sources:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _shards_of(source: str, faults: list[str]) -> Iterator[Shard]:
    if os.path.exists(source):
        yield from _of_one(source, faults)
        return
    try:
        places = list(islice(braceexpand(source), MOST_SHARDS + 1))
    except ValueError:  # its UnbalancedBracesError
        faults.append(f"{source}: a brace is not closed")
        return
    if len(places) > MOST_SHARDS:
        faults.append(f"{source}: stands for more than {MOST_SHARDS:,} shards")
        return
    for place in places:
        if place.startswith(PIPE) and not source.startswith(PIPE):
            faults.append(f"{source}: braces cannot make a command")
        else:
            yield from _of_one(place, faults)


def _of_one(place: str, faults: list[str]) -> Iterator[Shard]:
    path = Path(place)
    if place.startswith(PIPE):
        yield Shard(place, place)
    elif "://" in place:
        if place.partition("://")[0] not in SCHEMES:
            faults.append(f"{_without_query(place)} has none of the schemes {', '.join(LISTED_SCHEMES)}")
        else:
            yield Shard(place, _without_query(place))
    elif os.path.isdir(path):
        yield from _shards_in(path, faults)
    elif path.suffix in LIST_SUFFIXES and os.path.isfile(path):
        yield from _listed_in(path, faults)
    else:
        yield from _local(path, faults)


def _local(path: Path, faults: list[str]) -> Iterator[Shard]:
    if not os.path.isfile(path):
        faults.append(f"there is no {path}")
    elif path.suffix.lower() != TAR_SUFFIX:
        faults.append(f"{path} is no {TAR_SUFFIX} file (a compressed one must be unpacked to {TAR_SUFFIX})")
    else:
        yield Shard(str(path), str(path))


def _shards_in(folder: Path, faults: list[str]) -> list[Shard]:
    """All tar files under a folder and the folders that links in it lead to, sorted; without empty and hidden ones."""
    if not os.path.isdir(folder):
        faults.append(f"there is no folder {folder}")
        return []
    found = sorted(folder / path for path in walk(folder) if path.name.lower().endswith(TAR_SUFFIX))
    lost = [path for path in found if not os.path.isfile(path)]
    faults += [f"{path} is no file, or a link that leads to none" for path in lost]
    shards = [Shard(str(path), str(path)) for path in found if path not in lost and path.stat().st_size > 0]
    if not shards and not lost:
        faults.append(f"{folder} holds no {TAR_SUFFIX} file")
    return shards


def _listed_in(path: Path, faults: list[str]) -> Iterator[Shard]:
    """The shards of a list: paths below its folder or absolute ones, and addresses; never commands."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"the list {path} cannot be read ({error})")
        return
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        where = f"{path} line {number}"
        scheme, is_address, _ = line.partition("://")
        clean = posixpath.normpath(line)
        if line.startswith(PIPE) or (is_address and scheme not in LISTED_SCHEMES):
            faults.append(f"{where}: a list names files and http(s):// or s3:// addresses, not {line[:40]!r}")
        elif is_address:
            yield Shard(line, _without_query(line))
        elif clean == ".." or clean.startswith("../"):
            faults.append(f"{where}: {line!r} is not below the list's folder")
        else:
            yield from _local(path.parent / clean, faults)


def _without_query(address: str) -> str:
    """An address as logs may show it: what follows a `?` is often a signature, what precedes an `@` a password."""
    scheme, _, rest = address.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
