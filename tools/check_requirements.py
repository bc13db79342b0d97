"""Say which lines of a requirements file this Python does not meet; exit status 1 when there are any.

    python tools/check_requirements.py requirements.txt

Runs before anything is installed, so it imports the standard library only. It reads the forms that our files use
(`name`, `name>=1,<2`, `-r other.txt`, comments) and compares release numbers; pre-release and local parts are ignored.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path

REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<bounds>(\s*(==|!=|<=|>=|<|>)\s*[0-9][0-9.]*,?)*)$")
BOUND = re.compile(r"(==|!=|<=|>=|<|>)\s*([0-9.]+)")

COMPARISONS: dict[str, Callable[[int], bool]] = {
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    "<=": lambda order: order <= 0,
    ">=": lambda order: order >= 0,
    "<": lambda order: order < 0,
    ">": lambda order: order > 0,
}


def requirement_lines(path: Path) -> Iterator[str]:
    """The requirements of `path` and of the files that it names with `-r`, without comments."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            yield from requirement_lines(path.parent / text[3:].strip())
        elif text:
            yield text


def compare(left: str, right: str) -> int:
    """-1, 0 or 1 as release number `left` is older than, equal to or newer than `right` (1.2 equals 1.2.0)."""
    releases = [[int(part) for part in re.findall(r"\d+", re.split(r"[^0-9.]", text)[0])] for text in (left, right)]
    for a, b in zip_longest(*releases, fillvalue=0):
        if a != b:
            return -1 if a < b else 1
    return 0


def unmet(requirement: str) -> str | None:
    """Why this Python does not meet `requirement`, or None where it does."""
    match = REQUIREMENT.match(requirement)
    if match is None:
        raise ValueError(f"cannot read the requirement {requirement!r}: write it as name>=1.2,<3")
    try:
        installed = version(match["name"])
    except PackageNotFoundError:
        return f"{requirement} (not installed)"
    bounds = BOUND.findall(match["bounds"])
    met = all(COMPARISONS[operator](compare(installed, limit)) for operator, limit in bounds)
    return None if met else f"{requirement} (has {installed})"


def main(paths: list[str]) -> int:
    """Print what is not met, one requirement a line; 0 where everything is met."""
    lines = [line for path in paths for line in requirement_lines(Path(path))]
    problems = [problem for problem in map(unmet, lines) if problem is not None]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
