"""`--verify-save`: a checkpoint is published once another process has loaded it and got what the live model gives."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from cogvideox.checkpoint.live import write_live_model
from cogvideox.checkpoint.saving import UntrustedCheckpoint
from cogvideox.platform import has_gpu
from cogvideox.sat_bridge.training import own_random_stream

logger = logging.getLogger(__name__)

TOOL = Path(__file__).resolve().parents[2] / "tools" / "verify_checkpoint.py"
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

    def record(self, engine: Any, folder: Path, averages: dict[str, Tensor] | None) -> None:
        """Beside the checkpoint's files; every rank calls this. The training's random draws go on as if it had not."""
        with own_random_stream(self.seed):
            write_live_model(engine, self.network, averages, folder)

    def check(self, folder: Path) -> None:
        """Raise UntrustedCheckpoint with what the tool says, unless it says that all is well."""
        allowed = [word for module in self.allowed for word in ("--allow-target", module)]
        done = subprocess.run(
            [sys.executable, str(TOOL), str(folder), *allowed],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise UntrustedCheckpoint(
                f"{folder} is not what was trained (tools/verify_checkpoint.py, exit status {done.returncode}):\n"
                f"{done.stdout.strip()}"
            )
        logger.info("%s", done.stdout.strip())


def _environment() -> dict[str, str]:
    """This process's, for one that is no rank of its run and computes on the CPU."""
    dropped = LAUNCHER | ({"OMP_NUM_THREADS"} if has_gpu() else set())
    return {name: value for name, value in os.environ.items() if name not in dropped} | NO_GPU
