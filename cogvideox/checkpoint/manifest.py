"""`manifest.json` of a checkpoint: every file's size and SHA-256. A folder without it is no checkpoint.

It is canonical JSON and has its own digest, so that no byte of it can change unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.choosing import MANIFEST
from cogvideox.checkpoint.durable import Written
from cogvideox.parallel import Group

FORMAT = 1
MOST_BYTES = 1 << 24  # a manifest has a line of about 130 bytes for each file


class Damaged(Exception):
    """What is wrong with a checkpoint, in words that follow its name: "… lacks latest.pt"."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint of `iteration`, saved by `ranks` ranks, consists of."""

    iteration: int
    ranks: int
    files: Mapping[str, Written]

    @classmethod
    def of(cls, folder: Path, iteration: int, ranks: int) -> Manifest:
        """Of what lies in `folder` now. Raises OSError."""
        return cls(iteration, ranks, {path.name: durable.hash_file(path) for path in folder.iterdir()})

    def write(self, folder: Path) -> None:
        """As `folder`'s manifest, durably. Raises OSError."""
        durable.write_file(folder / MANIFEST, lambda file: file.write(self._encoded()))

    def _encoded(self) -> bytes:
        files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        body = {"files": files, "format": FORMAT, "iteration": self.iteration, "ranks": self.ranks}
        digest = hashlib.sha256(_canonical(body)).hexdigest()
        return _canonical({"digest": digest, **body})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises Damaged: there is none, or it is not what was written."""
        path = folder / MANIFEST
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            manifest = cls._of(json.loads(data))
        except FileNotFoundError:
            raise Damaged(
                f"has no {MANIFEST}: it was not saved to its end, or before there were any (--load takes its weights)"
            ) from None
        except OSError as error:
            raise Damaged(f"has a {MANIFEST} that cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise Damaged(f"has a damaged {MANIFEST}") from error
        if manifest._encoded() != data:
            raise Damaged(f"has a {MANIFEST} that was changed")
        return manifest

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> Manifest:
        files = {name: Written(int(each["bytes"]), str(each["sha256"])) for name, each in content["files"].items()}
        if any(Path(name).name != name for name in files):
            raise ValueError("a name that leaves the folder")
        return cls(int(content["iteration"]), int(content["ranks"]), files)

    def fault(self, folder: Path, rank: int = 0, ranks: int = 1) -> str | None:
        """What is wrong with the files in `folder`, as "…"; None where each is what was saved.

        Of several ranks that ask together, each reads its share of the files.
        """
        for number, (name, saved) in enumerate(sorted(self.files.items())):
            if number % ranks != rank:
                continue
            path = folder / name
            try:
                if not path.is_file():
                    return f"lacks {name}"
                if path.stat().st_size != saved.size:
                    return f"is damaged: {name} has {path.stat().st_size} bytes, saved were {saved.size}"
                if durable.hash_file(path) != saved:
                    return f"is damaged: {name} is not what was saved"
            except OSError as error:
                return f"is damaged: {name} cannot be read ({error.strerror})"
        return None


def fault_of(folder: Path, rank: int = 0, ranks: int = 1) -> str | None:
    """Why `folder` is not a whole checkpoint, as "…", or None; ranks share the reading as in `Manifest.fault`."""
    try:
        return Manifest.read(folder).fault(folder, rank, ranks)
    except Damaged as error:
        return str(error)


def fault_on_any_rank(folder: Path, group: Group) -> str | None:
    """The first fault that any rank of `group` finds in its share of `folder`'s files; every rank must call this."""
    faults = group.gather_objects(fault_of(folder, group.rank, group.size))
    return next((fault for fault in faults if fault is not None), None)


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"
