"""Whether two runs came to the same end, to the bit: what they logged, and all that their last checkpoints hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cogvideox.checkpoint.manifest import MANIFEST
from cogvideox.checkpoint.safe_loading import load_safely
from cogvideox.telemetry.metrics_file import read_metrics

METRICS = "metrics.jsonl"
# What is measured with a clock or a memory gauge; everything else in a line is computed, and must be the same.
MEASURED = ("second", "tflops", "mfu", "memory", "data_wait")
MOST_TOLD = 5


def differences(one: Path, other: Path, iteration: int) -> list[str]:
    """Between two runs' metrics and checkpoints of `iteration`: a few of them, in words."""
    return list(islice(_differences(one, other, iteration), MOST_TOLD))


def _differences(one: Path, other: Path, iteration: int) -> Iterator[str]:
    lines, others = logged(one), logged(other)
    for number, (line, other_line) in enumerate(zip(lines, others, strict=False), 1):
        if line != other_line:
            yield f"{METRICS}, line {number}: {line} there, {other_line} here"
    if len(lines) != len(others):
        yield f"{METRICS}: {len(lines)} lines there, {len(others)} here"
    folders = one / str(iteration), other / str(iteration)
    names, other_names = ({path.name for path in folder.iterdir()} for folder in folders)
    if names != other_names:
        yield f"{iteration}: {sorted(names ^ other_names)} in one of them only"
    for name in sorted(names & other_names - {MANIFEST}):
        yield from _unequal(load_safely(folders[0] / name), load_safely(folders[1] / name), f"{iteration}/{name}")


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of its metrics, without what was measured."""
    return [
        {key: value for key, value in line.items() if not any(word in key for word in MEASURED)}
        for line in read_metrics(run / METRICS)
    ]


def _unequal(one: Any, other: Any, where: str) -> Iterator[str]:
    if type(one) is not type(other):
        yield f"{where}: {type(one).__name__} there, {type(other).__name__} here"
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(_bytes(one), _bytes(other)):
            yield f"{where}: {_number(one)} there, {_number(other)} here"
    elif isinstance(one, Mapping):
        if one.keys() != other.keys():
            yield f"{where}: keys {list(one)} there, {list(other)} here"
        for key in one.keys() & other.keys():
            yield from _unequal(one[key], other[key], f"{where}: {key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield f"{where}: {len(one)} there, {len(other)} here"
        for number, (each, its_other) in enumerate(zip(one, other, strict=False)):
            yield from _unequal(each, its_other, f"{where}: {number}")
    elif one != other and not (one != one and other != other):
        if (inside := getattr(one, "__dict__", None)) is not None:
            yield from _unequal(inside, other.__dict__, where)
        else:
            yield f"{where}: {one!r} there, {other!r} here"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _number(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} of sum {tensor.double().sum():.17g}"
