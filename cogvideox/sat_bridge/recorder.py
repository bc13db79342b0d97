"""What an interval between two log lines adds up: kept on the device, moved to the host once, when it is logged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Recorder:
    """Sums over the micro-batches since the last log line."""

    lr: float = 0.0
    skipped_batches: int = 0
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

    def take_grad_norm(self, engine: Any) -> None:
        """Keep the gradient norm (before clipping) that DeepSpeed measured in this step, if it did."""
        norm = engine.get_global_grad_norm()
        if norm is not None:
            self.grad_norm = norm

    def drain(self) -> dict[str, float]:
        """The means so far, as floats, by one transfer; starts a new interval."""
        means: dict[str, float] = {}
        if self.sums:
            packed = torch.stack(list(self.sums.values())) / self.micro_batches
            means = dict(zip(self.sums, packed.tolist(), strict=True))
        if self.grad_norm is not None:
            means["grad_norm"] = float(self.grad_norm)
        means["lr"] = self.lr
        self.sums, self.micro_batches, self.samples = {}, 0, 0
        return means
