"""What `verify_checkpoint.py` saw of a checkpoint: a row for each form of its weights, and how it is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cogvideox.checkpoint.fingerprint import Fingerprint, differing
from cogvideox.checkpoint.fixed_noise import relative_difference
from cogvideox.transformer.tensor_parallel import shard

GOOD, DIFFERS, MISTAKE, NOT_COMPARED = 0, 1, 2, 3  # exit status
VERDICTS = {
    GOOD: "verified",
    DIFFERS: "NOT verified",
    NOT_COMPARED: "loads and computes finite numbers; nothing to compare with",
}
LISTED = 10  # parameters named of those that differ
# How far outputs of the same weights may lie apart: another device, another order of summation.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass
class Row:
    """What was seen of one form of the weights; `problems` make it fail. `is_compared`: there was something to hold it
    against.
    """

    weights: str
    parameters: str = "–"
    output: str = "–"
    problems: list[str] = field(default_factory=list)
    is_compared: bool = False

    @property
    def verdict(self) -> str:
        return "DIFFERS" if self.problems else "ok" if self.is_compared else "loads"


def check_parameters(
    row: Row, expected: Mapping[str, Fingerprint], parameters: Mapping[str, Tensor], rank: int, ranks: int
) -> None:
    """Hold those of one model parallel rank, of all `ranks`, against the live ones, bit for bit."""
    row.is_compared = True
    wrong = differing(expected, {name: shard(name, tensor, rank, ranks) for name, tensor in parameters.items()})
    if wrong:
        where = f" of model parallel rank {rank}" if ranks > 1 else ""
        row.problems.append(f"{len(wrong)} of {len(expected)} parameters{where} are not the live model's:")
        row.problems += [f"  {line}" for line in some(wrong)]
    row.parameters = f"{len(expected) - len(wrong)} of {len(expected)} as live"


def compare(row: Row, found: Tensor, expected: Tensor, dtype: torch.dtype, name: str) -> None:
    """Hold an output against that of `name`, within `TOLERANCE`."""
    row.is_compared = True
    if found.shape != expected.shape:
        row.problems.append(f"its output has shape {tuple(found.shape)}, {name} {tuple(expected.shape)}")
        return
    difference = relative_difference(found, expected)
    row.output = f"{difference:.1e} from {name}"
    if not difference <= TOLERANCE[dtype]:
        row.problems.append(
            f"its output on fixed noise is {difference:.3g} (relative) from {name}'s, allowed {TOLERANCE[dtype]:g}; "
            f"largest difference {float((found - expected).abs().max()):.3g}"
        )


def check_finite(row: Row, output: Tensor) -> None:
    """Count what is not finite."""
    bad = int((~torch.isfinite(output)).sum())
    row.output = "finite" if not bad else "not finite"
    if bad:
        row.problems.append(f"{bad} of {output.numel()} values of its output on fixed noise are not finite")


def some(lines: Sequence[str]) -> list[str]:
    """The first of `lines`, and how many more there are."""
    more = len(lines) - LISTED
    return [*lines[:LISTED], *([f"and {more} more"] if more > 0 else [])]


def table(rows: Sequence[Row]) -> str:
    """A line for each row, aligned, and below it what is wrong with it."""
    cells = [("weights", "parameters", "output", ""), *((r.weights, r.parameters, r.output, r.verdict) for r in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    details = [f"{row.weights}: {problem}" for row in rows for problem in row.problems]
    return "\n".join([*lines, *([""] if details else []), *details])
