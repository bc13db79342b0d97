"""What an interval between two log lines adds up: kept on the device, moved to the host once, when it is logged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cogvideox.platform import current_device

# Of what went wrong; the last one since the last log line, the others in the whole run.
COUNTS = ("skipped_batches", "skipped_steps", "overflows", "loss_spikes")


@dataclass
class Recorder:
    """Sums over the micro-batches since the last log line."""

    lr: float = 0.0
    skipped_batches: int = 0  # drawn beside those of the iterations
    skipped_steps: int = 0
    overflows: int = 0
    loss_spikes: int = 0
    micro_batches: int = 0
    samples: int = 0
    grad_norm: torch.Tensor | float | None = None
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add_micro_batch(self, metrics: dict[str, torch.Tensor], samples: int) -> None:
        """Add one micro-batch's reduced metrics; `samples` is this rank's."""
        self.micro_batches += 1
        self.samples += samples
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def state(self) -> dict[str, Any]:
        """What to save, to go on in the middle of an interval; after `torch.load`, `restore` takes it."""
        norm = None if self.grad_norm is None else float(self.grad_norm)
        interval = {"micro_batches": self.micro_batches, "samples": self.samples, "grad_norm": norm, "sums": self.sums}
        interval |= {"loss_spikes": self.loss_spikes}
        so_far = {"skipped_steps": self.skipped_steps, "overflows": self.overflows}
        return {"skipped_batches": self.skipped_batches, "so_far": so_far, "interval": interval}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.skipped_batches = state["skipped_batches"]
        so_far = state.get("so_far", {})
        self.skipped_steps, self.overflows = so_far.get("skipped_steps", 0), so_far.get("overflows", 0)
        interval = state.get("interval")
        if interval is not None:
            self.micro_batches, self.samples = interval["micro_batches"], interval["samples"]
            self.grad_norm, self.loss_spikes = interval["grad_norm"], interval.get("loss_spikes", 0)
            self.sums = {name: value.to(current_device()) for name, value in interval["sums"].items()}

    def drain(self) -> dict[str, float]:
        """The means so far, as floats, by one transfer, and the counts above 0; starts a new interval."""
        means: dict[str, float] = {}
        if self.sums:
            packed = torch.stack(list(self.sums.values())) / self.micro_batches
            means = dict(zip(self.sums, packed.tolist(), strict=True))
        if self.grad_norm is not None:
            means["grad_norm"] = float(self.grad_norm)
        means["lr"] = self.lr
        counts = {name: getattr(self, name) for name in COUNTS}
        means |= {name: float(count) for name, count in counts.items() if count}
        self.sums, self.micro_batches, self.samples, self.loss_spikes = {}, 0, 0, 0
        return means
