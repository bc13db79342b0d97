"""`--split`: how much of the data is for training, for evaluation and for the test."""

from __future__ import annotations

import math

from cogvideox.config.report import Problem
from cogvideox.config.settings import Settings


def shares_of(split: str) -> list[float]:
    """The three shares in `split`, as SAT reads it (90,5,5 or 90/5/5; those that are missing are 0), not scaled.

    Raises:
        ValueError: it is something else.
    """
    try:
        shares = [float(part) for part in split.replace("/", ",").split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or not math.isfinite(sum(shares)) or min(shares) < 0 or not shares[0]:
        raise ValueError(f"is {split!r}, not up to three shares ≥ 0, of which the first (training) is above 0")
    if sum(shares) < 1:
        shares.append(1 - sum(shares))
    return (shares + [0.0, 0.0])[:3]


def check_split(settings: Settings) -> list[Problem]:
    """What is wrong with `args.split`."""
    key, split = "args.split", settings.get("args.split")
    try:
        if isinstance(split, str):
            shares_of(split)
    except ValueError as error:
        return [Problem(settings.source(key), key, str(error), "write it as in `--split 90,5,5`")]
    return []
