"""What a run says of its checkpoints' room. Truths: golden lines; that the size is right is tested with real saves."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cogvideox.sat_bridge import room
from cogvideox.sat_bridge.room import checkpoints_due, tell_of_room

MIB = 1 << 20


def engine(stage: int) -> Any:
    """Of 2²⁰ trained parameters in bfloat16 and three times as many frozen ones."""
    trained, frozen = (torch.nn.Parameter(torch.zeros(size * MIB, dtype=torch.bfloat16)) for size in (1, 3))
    frozen.requires_grad_(False)
    return SimpleNamespace(
        zero_optimization_partition_weights=lambda: False,
        zero_optimization=lambda: stage > 0,
        basic_optimizer=None,
        module=SimpleNamespace(parameters=lambda: iter([trained, frozen])),
    )


def arguments(**changes: Any) -> argparse.Namespace:
    given = {"train_iters": 10, "iteration": 0, "save_interval": 3, "save_total_limit": None}
    return argparse.Namespace(**(given | {"keep_every": None, "eval_interval": None} | changes))


@pytest.mark.parametrize(
    ("changes", "present", "due"),
    [
        ({}, 0, 4),
        ({}, 5, 4),
        ({"iteration": 9}, 0, 1),
        ({"save_interval": None}, 0, 1),
        ({"save_total_limit": 2}, 0, 3),
        ({"save_total_limit": 2}, 2, 1),
        ({"save_total_limit": 2}, 7, 1),
        ({"save_total_limit": 9}, 0, 4),
        ({"iteration": 10}, 0, 1),
        ({"iteration": 10, "save_total_limit": 2}, 1, 1),
        ({"train_iters": 100, "save_total_limit": 2, "keep_every": 30}, 0, 6),
        ({"train_iters": 100, "save_total_limit": 2, "keep_every": 30, "eval_interval": 5}, 0, 7),
    ],
)
def test_how_many_more_will_lie_there(changes: dict[str, Any], present: int, due: int) -> None:
    assert checkpoints_due(arguments(**changes), present) == due


@pytest.mark.parametrize(
    ("free", "adapters_only", "level", "line"),
    [
        (80, False, "INFO", "room for 4 more checkpoints of about 20.0 MiB is needed, 80.0 MiB free"),
        (79, False, "WARNING", "79.0 MiB free: only 3 will fit: make room, or keep fewer (--save-total-limit)"),
        (19, False, "WARNING", "19.0 MiB free: NOTHING CAN BE SAVED: make room, or choose another --save than"),
        (56, True, "INFO", "room for 4 more checkpoints of about 14.0 MiB is needed, 56.0 MiB free"),
    ],
)
def test_the_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: int,
    adapters_only: bool,
    level: str,
    line: str,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=free * MIB))
    tell_of_room(engine(2), arguments(), tmp_path, adapters_only=adapters_only)
    (record,) = caplog.records
    assert line in record.getMessage() and record.levelname == level
