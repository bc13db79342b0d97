"""How long the parts of an iteration take on the device, without making the host wait for it.

    with phases("vae"):
        z = autoencoder.encode(x)

The names in use: `vae`, `text_encoder`, `forward` (the transformer and the loss), `backward`, `optimizer`; none lies in
another. A phase inside another would count in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from cogvideox.platform import elapsed_events, record_event

_NOTHING: AbstractContextManager[None] = nullcontext()


class PhaseClock:
    """Adds up seconds per named phase. Disabled (the default) it hands out one shared no-op.

    On a GPU a phase is the time between two events in the current stream; on a CPU it is wall time.
    """

    def __init__(self) -> None:
        self._is_enabled = False
        # Pairs of points from `record_event`, whose type depends on the device.
        self._spans: dict[str, list[tuple[Any, Any]]] = {}

    def enable(self) -> None:
        """Time phases from now on; call `totals` now and then, since every phase keeps two events until then."""
        self._is_enabled = True

    def disable(self) -> None:
        """Stop timing and forget what was not drained."""
        self._is_enabled = False
        self._spans = {}

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """A `with` block that counts as phase `name`, also if it is left by an exception."""
        return self._timed(name) if self._is_enabled else _NOTHING

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = record_event()
        try:
            yield
        finally:
            self._spans.setdefault(name, []).append((start, record_event()))

    def totals(self) -> dict[str, float]:
        """Seconds per phase since the last call, in order of first use; on a GPU waits for the last phase to end."""
        spans, self._spans = self._spans, {}
        return {name: sum(elapsed_events(start, end) for start, end in pairs) for name, pairs in spans.items()}


phases = PhaseClock()
