"""Files that name other files beside them: `latest`, and the index of weights in shards. None lies elsewhere."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from cogvideox.errors import UserError

LONGEST = 1000  # bytes of `latest` that are read
MOST_INDEX_BYTES = 100_000_000


def read_latest(latest: Path) -> str:
    """The name of the checkpoint's folder, beside it, that `latest` holds. UserError: it holds anything else."""
    name = latest_text(latest)
    if fault := fault_of_latest(name):
        raise UserError(f"{latest} {fault}: let it hold the name of a folder beside it, as 1000")
    return name


def latest_text(latest: Path) -> str:
    """What it holds, be it a name or not."""
    with latest.open("rb") as file:
        return file.read(LONGEST).decode("utf-8", "replace").strip()


def fault_of_latest(name: str) -> str | None:
    """Why a text is not the name of one folder."""
    if not name:
        return "is empty"
    is_plain = PurePosixPath(name).name == name and name != ".." and name.isprintable()
    return None if is_plain else f"names {name!r}, which is no folder beside it"


def read_shards(index: Path) -> list[str]:
    """The names of the files, below the index's folder, that a `weight_map` spreads the weights over, sorted.

    UserError: it is no such index, or names files elsewhere.
    """
    try:
        if index.stat().st_size > MOST_INDEX_BYTES:
            raise ValueError(f"{index.stat().st_size:,} bytes")
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [PurePosixPath(name) for name in names]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: not an index of weight shards ({error!r}): fetch it again") from error
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{index} names {str(path)!r}, which does not lie below its folder: fetch it again")
    return names
