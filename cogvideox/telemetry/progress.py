"""The lines that a person reads, one per logged iteration: no carriage returns, no colours, so that they read the same
in a terminal and in a log file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

# Metric → how it reads. In this order; what is missing is left out.
_TRAINING_FIELDS = {
    "loss": "loss {:.5f}",
    "lr": "lr {:.3e}",
    "grad_norm": "grad norm {:.3f}",
    "seconds_per_iteration": "{:.3f} s/it",
    "samples_per_second": "{:.3f} samples/s",
    "mfu": "MFU {:.1%}",
    "peak_memory_gib": "peak {:.2f} GiB",
}


SMALL = 0.01  # a norm of adapters that begin at zero


def duration(seconds: float) -> str:
    """Seconds as `h:mm:ss`, with days in front where there are any."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02d}:{minute:02d}:{second:02d}" if days else f"{hour}:{minute:02d}:{second:02d}"


def training_line(step: int, total_iterations: int, values: Mapping[str, float]) -> str:
    """One logged iteration in words; the ETA counts training time only."""
    width = len(str(total_iterations))
    parts = [f"iteration {step:{width}d}/{total_iterations}"]
    fields = _TRAINING_FIELDS | ({"grad_norm": "grad norm {:.1e}"} if values.get("grad_norm", 1.0) < SMALL else {})
    parts += [text.format(values[key]) for key, text in fields.items() if key in values]
    seconds_per_iteration = values.get("seconds_per_iteration", math.nan)
    if math.isfinite(seconds_per_iteration):
        parts.append(f"ETA {duration((total_iterations - step) * seconds_per_iteration)}")
    return " | ".join(parts)


def evaluation_line(step: int, values: Mapping[str, float], split: str) -> str:
    """One evaluation in words: every metric that it has."""
    parts = [f"{split} at iteration {step}", *(f"{key} {value:.5f}" for key, value in values.items())]
    return " | ".join(parts)
