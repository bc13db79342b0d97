"""Problems with what the user gave, collected so that all of them are told at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cogvideox.errors import UserError

SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One mistake. `where`: file:line or flag. `key`: dotted, may be empty. `what`: the fault. `remedy`: what to do.

    A flag or an override on the command line names its key itself.
    """

    where: str
    key: str
    what: str
    remedy: str

    def __str__(self) -> str:
        is_named = self.where.startswith("command line: --") or self.key in self.where
        head = self.where if self.where and is_named else ": ".join(part for part in (self.where, self.key) if part)
        return f"{head}: {self.what}; {self.remedy}"


def raise_if_any(problems: Iterable[Problem]) -> None:
    """One UserError for all problems, the first `SHOWN` spelled out."""
    unique = list(dict.fromkeys(problems))
    if not unique:
        return
    title = "1 problem" if len(unique) == 1 else f"{len(unique)} problems"
    lines = [f"{title} with the configuration:"]
    lines += [f"  - {problem}" for problem in unique[:SHOWN]]
    if len(unique) > SHOWN:
        lines.append(f"  … and {len(unique) - SHOWN} more")
    raise UserError("\n".join(lines))
