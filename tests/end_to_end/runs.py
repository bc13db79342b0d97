"""Start real runs of `train_video.py` at the smallest size, and read what they wrote."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from cogvideox.telemetry.metrics_file import read_metrics
from tests.end_to_end.warm_start import Verifier, run_warm

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"

# Smaller than the quickstart wherever that makes a run faster; every code path stays.
TINY = {
    "args": {"train_iters": 20, "log_interval": 1, "eval_interval": None, "save_interval": 1000, "num_workers": 0},
    "model": {
        "network_config": {
            "params": {
                "num_layers": 2,
                "hidden_size": 128,
                "num_attention_heads": 2,
                "time_embed_dim": 64,
                "num_frames": 5,
                "latent_width": 4,
                "latent_height": 2,
            }
        },
        "sampler_config": {"params": {"num_steps": 2}},
    },
    "data": {"params": {"video_size": [16, 32], "max_num_frames": 5}},
    "deepspeed": {"train_micro_batch_size_per_gpu": 1},
}
LORA = {
    "model": {
        "not_trainable_prefixes": ["all"],
        "network_config": {
            "params": {
                "modules": {
                    "lora_config": {"target": "sat.model.finetune.lora2.LoraMixin", "params": {"r": 4, "lora_alpha": 4}}
                }
            }
        },
    }
}
# Kept by this process for runs in which what comes before the network is not what is tested: it takes more than half of
# a step. The first run fills it.
CACHE = tempfile.mkdtemp(prefix="cache-")
CACHED = {"args": {"cache": CACHE}}
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
# A model from scratch whose attention matters from the first step, so that adapters on it learn.
OPEN_ADALN = {"adaln_layer_config": {"target": "tests.end_to_end.open_gates.OpenAdaLN"}}
OPEN_GATES = {"model": {"network_config": {"params": {"modules": OPEN_ADALN}}}}


@dataclass
class Run:
    """A finished run: its exit status, its output, and the folder that it made."""

    status: int
    output: str
    save: Path

    @property
    def folder(self) -> Path:
        """The one run folder in the save folder."""
        (folder,) = [path for path in self.save.iterdir() if path.is_dir()]
        return folder

    @property
    def metrics(self) -> list[dict]:
        """Logged training iterations."""
        return [line for line in read_metrics(self.folder / "metrics.jsonl") if "split" not in line]

    @property
    def losses(self) -> list[float]:
        """Loss by logged iteration."""
        return [line["loss"] for line in self.metrics]

    def checkpoint(self, iteration: int) -> Path:
        """The model file of one checkpoint."""
        return self.folder / str(iteration) / "mp_rank_00_model_states.pt"


def write_config(folder: Path, *changes: dict) -> Path:
    """A config file in `folder` that extends the quickstart by TINY and then each of `changes`."""
    merged: dict = {"extends": str(QUICKSTART)}
    for change in (TINY, {"args": {"save": str(folder / "runs")}}, *changes):
        _merge(merged, change)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(merged), encoding="utf-8")
    return path


def train(
    folder: Path,
    *changes: dict,
    ranks: int = 1,
    flags: tuple[str, ...] = (),
    timeout_s: float = 240,
    verifier: Verifier | None = None,
) -> Run:
    """Train at tiny size in `folder` with `changes` to the config, each rank in a process of its own.

    The processes are forked from one that has loaded torch and DeepSpeed, which takes most of a tiny run's time;
    `run` starts from nothing. `verifier`: as of `run_warm`. Asserts nothing about the outcome.
    """
    arguments = ["--base", str(_config_in(folder, *changes)), *flags]
    status, output = run_warm(arguments, environment(ranks), ranks, folder / "output.log", timeout_s, verifier)
    return Run(status, output, folder / "runs")


def _config_in(folder: Path, *changes: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_config(folder, *changes)


def launcher(ranks: int) -> list[str]:
    """The command before the script: Python itself, or our torchrun for several ranks."""
    if ranks == 1:
        return [sys.executable]
    return [sys.executable, str(ROOT / "tools" / "torchrun.py"), "--standalone", f"--nproc_per_node={ranks}"]


def environment(ranks: int = 1) -> dict[str, str]:
    """This process's environment without a launcher's variables, one thread a rank."""
    drop = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if ranks == 1:
        kept |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return kept


def run(command: list[str], save: Path, env: dict[str, str], timeout_s: float = 240, cwd: Path | None = None) -> Run:
    """Run a command to its end; output holds stdout and stderr in order."""
    done = subprocess.run(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s
    )
    return Run(done.returncode, done.stdout, save)


def one_error(done: Run, *parts: str, status: int = 2) -> None:
    """Assert that `done` ended with one error of one screen that says each of `parts` once, and left no run behind."""
    assert done.status == status, done.output[-3000:]
    assert "Traceback" not in done.output, done.output[-3000:]
    assert len(done.output.strip().splitlines()) <= 40, done.output
    for part in parts:
        assert done.output.count(part) == 1, done.output
    assert not done.save.exists() or not any(path.is_dir() for path in done.save.iterdir())


def _merge(into: dict, change: dict) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = yaml.safe_load(yaml.safe_dump(value))
