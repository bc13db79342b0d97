"""A list of files that are not to be trained on, one a line, as tools/check_data.py writes it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cogvideox.data.records import Record
from cogvideox.errors import UserError

_logger = logging.getLogger(__name__)

DATA_LINE = "# data: "
"""Begins the line that says of which data folder a list is. Its names then count in that folder alone."""


@dataclass(frozen=True)
class Quarantine:
    """Names as in the data's own messages, or paths."""

    entries: frozenset[str] = frozenset()

    def names(self, record: Record) -> bool:
        """Whether a record's file is in the list, by its name or by its path."""
        return bool(self.entries) and not self.entries.isdisjoint(
            {record.name, str(record.path), os.path.realpath(record.path)}
        )

    def without_a_clip(self, records: Iterable[Record]) -> list[str]:
        """The names, of those that are no paths, that are of none of `records`."""
        names = {entry for entry in self.entries if not os.path.isabs(entry)}
        return sorted(names.difference(record.name for record in records)) if names else []


def read_quarantine(path: str | None, data: Path | None = None) -> Quarantine:
    """The list in `path`: a file a line, what follows a tab and lines that begin with # are left out. UserError.

    `data` is what it is read for: of a list of another folder only absolute paths count, since names are relative. A
    list that says of no folder, or of one that has gone (it was moved), counts everywhere.
    """
    if path is None:
        return Quarantine()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the quarantine list {path} cannot be read ({error}): give a text file with a clip's name a line, as "
            "tools/check_data.py writes it (data.params.quarantine, --quarantine)"
        ) from error
    listed = (line.partition("\t")[0].strip() for line in lines if not line.startswith("#"))
    names = frozenset(name for name in listed if name)
    folder = next((line.removeprefix(DATA_LINE) for line in lines if line.startswith(DATA_LINE)), None)
    if folder is not None and not os.path.exists(folder):
        text = "%s is of %s, which is not there: its names count in all data; mend its line '%s' if that is wrong"
        _logger.warning(text, path, folder, DATA_LINE.strip())
    elif folder is not None and not _is_in(folder, data):
        _logger.warning("%s is of %s: its names leave out nothing of %s", path, folder, data)
        names = frozenset(name for name in names if os.path.isabs(name))
    return Quarantine(names)


def folder_of(data: Path) -> Path:
    """The folder of a data set, which may be given by its table."""
    return data.resolve() if data.is_dir() else data.resolve().parent


def _is_in(folder: str, data: Path | None) -> bool:
    return data is not None and data.exists() and os.path.samefile(folder, folder_of(data))
