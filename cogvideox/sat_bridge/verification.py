"""`--verify-save`: a checkpoint is published once another process has loaded it and got what the live model gives."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from cogvideox.checkpoint.fixed_noise import why_not_fixed
from cogvideox.checkpoint.live import live_model
from cogvideox.checkpoint.saving import UntrustedCheckpoint
from cogvideox.parallel import current
from cogvideox.platform import has_gpu
from cogvideox.progress import tick
from cogvideox.sat_bridge.training import own_random_stream

logger = logging.getLogger(__name__)

TOOL = Path(__file__).resolve().parents[2] / "tools" / "verify_checkpoint.py"
REFUSED = "NOT verified"  # the tool's last word where something differs
NOT_STARTED = 127  # as a shell has it
LOOK_S, MOST_S = 10.0, 7200.0  # a network of 5B on the CPU takes a quarter of an hour
LAST_LINES = 5  # of what a tool without a verdict printed
# What would make the other process a rank of this run.
LAUNCHER = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
# It leaves the GPU's memory to the training, whose ranks wait for it and leave it the CPU.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


class LiveGate:
    """Records what the live model is, and asks `tools/verify_checkpoint.py` whether the checkpoint is the same."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.network = args.model_config["network_config"]["params"]
        self.allowed = list(args.allow_target)
        self.seed = args.seed

    def record(self, engine: Any, averages: dict[str, Tensor] | None) -> dict[str, Any] | None:
        """For a file beside the weights; every rank calls this. The training's random draws go on as if it had not."""
        with own_random_stream(self.seed):
            live = live_model(engine, self.network, averages)
        return live.content() if live is not None else None

    def check(self, folder: Path) -> None:
        """Raise UntrustedCheckpoint with what the tool says, if it says that something differs.

        A tool that comes to no verdict, because it was killed or lacks something, says nothing of the checkpoint: that
        is a warning.
        """
        status, said = ask([str(folder), *(word for module in self.allowed for word in ("--allow-target", module))])
        if status == 0:
            logger.info("%s", said)
        elif status == 1 and said.endswith(REFUSED):  # Python's own crashes have status 1 too
            raise UntrustedCheckpoint(f"{folder} is not what was trained (tools/verify_checkpoint.py):\n{said}")
        else:
            last = "\n".join(said.splitlines()[-LAST_LINES:]) or "It printed nothing."
            logger.warning(
                "%s could not be verified, training goes on: tools/verify_checkpoint.py %s. It said last:\n%s",
                folder,
                _end_of(status),
                last,
            )


def gate_of(args: argparse.Namespace) -> LiveGate | None:
    """The run's gate with `--verify-save`. For a network that it cannot compute, a warning and none."""
    if not args.verify_save:
        return None
    reason = why_not_fixed(args.model_config["network_config"]["params"])
    if reason is None:
        return LiveGate(args)
    if current().world.rank == 0:
        logger.warning("--verify-save: checkpoints of this network cannot be verified, it goes on without: %s", reason)
    return None


def ask(arguments: list[str]) -> tuple[int, str]:
    """The tool's exit status, negative for a signal, and what it printed. It is killed after `MOST_S`."""
    try:
        process = subprocess.Popen(
            [sys.executable, str(TOOL), *arguments],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return NOT_STARTED, str(error)
    with process:
        said = _said_by(process, time.monotonic() + MOST_S)
    return process.returncode, said


def _said_by(process: subprocess.Popen[str], deadline: float) -> str:
    """All that it prints to its end, or to where it is killed for being late; the wait is progress to the watchdog."""
    while True:
        try:
            return process.communicate(timeout=LOOK_S)[0].strip()
        except subprocess.TimeoutExpired:
            tick("a look at the verification")
            if time.monotonic() > deadline:
                process.kill()


def _end_of(status: int) -> str:
    if status == NOT_STARTED:
        return "did not start"
    if status >= 0:
        return f"ended with exit status {status}"
    memory = f", as when memory runs out, or after {MOST_S / 3600:g} hours" if status == -signal.SIGKILL else ""
    return f"was ended by signal {-status}{memory}"


def _environment() -> dict[str, str]:
    """This process's, for one that is no rank of its run and computes on the CPU."""
    dropped = LAUNCHER | ({"OMP_NUM_THREADS"} if has_gpu() else set())
    return {name: value for name, value in os.environ.items() if name not in dropped} | NO_GPU
