"""Which losses stand out: far above a running mean, in units of their running deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping

WARM_UP = 100  # losses, before any is called a spike
HORIZON = 200  # losses that the running mean remembers, about
DEVIATIONS = (
    6.0  # a spike's least distance from the mean; it is learned from as if it stood there, lest it hide the next
)


class LossSpikes:
    """The mean and deviation of the losses so far, exponentially forgotten.

    A diffusion loss varies severalfold from step to step with the timesteps drawn, to both sides alike and within
    bounds; six deviations are far outside of them. Where losses stay high, the mean follows, and they are none then.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def is_spike(self, loss: float) -> bool:
        """Whether a (finite) loss stands out from those before it; it is learned from."""
        limit = self.mean + DEVIATIONS * math.sqrt(self.variance) if self.count >= WARM_UP else math.inf
        self.count += 1
        share = max(1 / self.count, 1 / HORIZON)
        step = min(loss, limit) - self.mean
        self.mean += share * step
        self.variance = (1 - share) * (self.variance + share * step**2)
        return loss > limit

    def state(self) -> dict[str, float]:
        """What to save, so that a resumed run flags the same."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on where `state` was taken."""
        self.count, self.mean, self.variance = int(state["count"]), state["mean"], state["variance"]
