"""Truth: golden values. The one line that a person reads."""

from __future__ import annotations

import math

import pytest

from cogvideox.telemetry.progress import duration, evaluation_line, training_line

VALUES = {
    "loss": 0.123456,
    "lr": 1e-4,
    "grad_norm": 0.5,
    "seconds_per_iteration": 2.0,
    "samples_per_second": 4.0,
    "mfu": 0.412,
    "peak_memory_gib": 61.5,
    "tokens_per_second": 1e6,
}


def test_the_line() -> None:
    assert training_line(100, 10000, VALUES) == (
        "iteration   100/10000 | loss 0.12346 | lr 1.000e-04 | grad norm 0.500 | 2.000 s/it | 4.000 samples/s"
        " | MFU 41.2% | peak 61.50 GiB | ETA 5:30:00"
    )


def test_a_small_norm_is_not_zero() -> None:
    assert "| grad norm 1.6e-04 |" in training_line(1, 2, VALUES | {"grad_norm": 1.6e-4})


def test_what_is_missing_or_not_finite_is_no_obstacle() -> None:
    assert training_line(1, 2, {"loss": math.nan}) == "iteration 1/2 | loss nan"
    assert "ETA" not in training_line(1, 2, {"seconds_per_iteration": math.nan})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (86_399, "23:59:59"), (90_061, "1d 01:01:01"), (-1, "0:00:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_are_clean() -> None:
    lines = [training_line(1, 10, VALUES), evaluation_line(1, {"loss": 0.5}, "val")]
    assert lines[1] == "val at iteration 1 | loss 0.50000"
    assert not any(character in line for line in lines for character in "\r\n\x1b")
