"""A network wrapper in which something happens to a rank in the middle of its training, as the environment says.

`MISHAPS`: `RANK FORWARD WHAT [ATTEMPT]`, several separated by `;`: in forward number FORWARD, from 1, of the training
of rank RANK (under torchrun's restart number ATTEMPT). WHAT: names of signals joined by `+`, sent to the rank itself,
or with a leading `^` to its launcher; `sleep`; an error, `raise`. Prints when.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

from cogvideox.sat_bridge import stopping
from cogvideox.transformer.wrapper import NetworkWrapper

BETWEEN_SIGNALS_S = 1.1


class MishapWrapper(NetworkWrapper):
    """The product's wrapper, with mishaps."""

    forwards = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: Any, **model_inputs: Any) -> torch.Tensor:
        self.forwards += self.training
        for mishap in filter(None, os.environ.get("MISHAPS", "").split(";")):
            rank, forward, what, *attempt = mishap.split()
            is_now = attempt in ([], [os.environ.get("TORCHELASTIC_RESTART_COUNT")])
            if self.training and is_now and (rank, int(forward)) == (os.environ["RANK"], self.forwards):
                happen(what)
        return super().forward(x, t, c, **model_inputs)


def happen(what: str) -> None:
    os.write(2, f"\nmishap at {time.time()}\n".encode())
    if what == "sleep":
        time.sleep(1000)
    if what == "raise":
        raise RuntimeError("a mishap")
    whom = os.getppid() if what.startswith("^") else os.getpid()
    for number, name in enumerate(what.removeprefix("^").split("+")):
        time.sleep(BETWEEN_SIGNALS_S if number else 0)
        os.kill(whom, getattr(signal, f"SIG{name}"))
    while what.startswith("^") and stopping.current()._signal is None:
        time.sleep(0.01)  # the launcher passes it on, or the test's own time runs out
