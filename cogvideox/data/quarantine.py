"""A list of files that are not to be trained on, one a line, as tools/check_data.py writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogvideox.data.records import Record
from cogvideox.errors import UserError


@dataclass(frozen=True)
class Quarantine:
    """Names as in the data's own messages, or paths."""

    entries: frozenset[str] = frozenset()

    def names(self, record: Record) -> bool:
        """Whether a record's file is in the list, by its name or by its path."""
        return bool(self.entries) and not self.entries.isdisjoint(
            {record.name, str(record.path), str(record.path.resolve())}
        )


def read_quarantine(path: str | None) -> Quarantine:
    """The list in `path`: a file a line, what follows a tab and lines that begin with # are left out. UserError."""
    if path is None:
        return Quarantine()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the quarantine list {path} cannot be read ({error}): give a text file with a clip's name a line, as "
            "tools/check_data.py writes it (data.params.quarantine, --quarantine)"
        ) from error
    names = (line.partition("\t")[0].strip() for line in lines if not line.startswith("#"))
    return Quarantine(frozenset(name for name in names if name))
