"""The nearest real name to a mistyped one, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

CUTOFF = 0.55


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, ignoring case, dashes and underscores; `None` where none is close."""
    wanted = _plain(name)
    scored = [(SequenceMatcher(None, wanted, _plain(each)).ratio(), each) for each in candidates]
    score, best = max(scored, default=(0.0, None))
    return best if score >= CUTOFF else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A remedy in words: the nearest candidate, or the whole list if nothing is close and the list is short."""
    names = sorted(set(candidates))
    best = nearest(name, names)
    if best is not None:
        return f"did you mean `{best}`?"
    if 0 < len(names) <= 12:
        return "remove it; known here: " + ", ".join(names)
    return "remove it: nothing here has a name like it"


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
