"""Is a run that is killed at any moment, and started again with `--resume auto`, the run that nobody disturbed?

    python tools/torture.py                                  (30 kills, ZeRO 2 on two ranks)
    python tools/torture.py --hours 8 --zero-stage 3
    python tools/torture.py --rounds 5 --lora --ema --async-save

Trains the quickstart's model for a few iterations undisturbed. Then it trains it again and kills a random rank, or all,
as `kill -9` does: while it starts, in a step, while a checkpoint is written, just after it got its name, after `latest`
moved, after it was announced. A run that reaches its end must have logged the same losses, learning rates and gradient
norms, and its last checkpoint must hold the same weights, optimizer state and random states, all to the bit; no
checkpoint that was announced may be lost, and each start must go on from the one that `latest` named. Another run
follows until all kills are done. Prints a line for each start. Exit status 0 and `passed`, or 1 and `FAILED`, and then
the runs and their logs are kept; 2 for a mistake in what was given. On a GPU choose settings whose kernels are
deterministic.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

import yaml  # noqa: E402

from cogvideox.errors import UserError  # noqa: E402
from tools.torture_rounds import Failed, Row, Start, Torture, moments, runs_below  # noqa: E402

PASSED, FAILED, MISTAKE = 0, 1, 2
ROUNDS = 30
LAUNCHERS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LORA = {
    "not_trainable_prefixes": ["all"],
    "network_config": {
        "params": {
            "modules": {
                "lora_config": {"target": "sat.model.finetune.lora2.LoraMixin", "params": {"r": 8, "lora_alpha": 8}}
            }
        }
    },
}


def settings(options: argparse.Namespace, load: Path | None) -> dict[str, Any]:
    """The config of the runs: `--base`, with saves every few iterations; LoRA on the weights in `load`."""
    args: dict[str, Any] = {
        "train_iters": options.iterations,
        "log_interval": 1,
        "save_interval": options.save_interval,
        "save_total_limit": 3,
        "eval_interval": 2 * options.save_interval,
        "eval_batch_size": 2,
        "eval_iters": 1,
        "strict_eval": False,
        "async_save": options.async_save,
    }
    deepspeed: dict[str, Any] = {"zero_optimization": {"stage": options.zero_stage}}
    model: dict[str, Any] = {"sampler_config": {"params": {"num_steps": 2}}}
    if options.zero_stage == 3:
        deepspeed["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # else all of so small a model is
    if options.ema:
        deepspeed["optimizer"] = {"type": "EmaAdamW"}
    if load is not None:
        args |= {"mode": "finetune", "load": str(load)}
        model |= LORA
    return {"extends": [str(path.resolve()) for path in options.base], "args": args, "deepspeed": deepspeed} | {
        "model": model
    }


def write_config(
    options: argparse.Namespace, path: Path, load: Path | None = None, args: Mapping[str, Any] | None = None
) -> Path:
    """`settings` as a file, with `args` over its own."""
    content = settings(options, load)
    content["args"] |= args or {}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@dataclass
class Processes:
    """Starts the ranks of `train_video.py` as a launcher does."""

    config: Path
    ranks: int

    def __call__(self, save: Path, log: Path) -> list[subprocess.Popen[bytes]]:
        """As `Start`."""
        command = [sys.executable, str(ROOT / "train_video.py"), "--base", str(self.config)]
        command += ["--save", str(save), "--resume", "auto"]
        env = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
        env |= {"OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1"), "WORLD_SIZE": str(self.ranks)}
        env |= {"LOCAL_WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        with log.open("ab") as output:
            return [
                subprocess.Popen(
                    command,
                    env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                for rank in range(self.ranks)
            ]


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Table:
    """Prints a line for each start."""

    width: str = "{:>5}  {:>3}  {:<15}  {:<7}  {:>12}  {:>7}  {:>13}  {}"
    lines: int = field(default=0)

    def head(self) -> None:
        """The names of the columns."""
        columns = ("start", "run", "ended at", "killed", "resumed from", "reached", "others lasted", "on the disk then")
        print(self.width.format(*columns), flush=True)

    def tell(self, row: Row) -> None:
        """One start and its end."""
        self.lines += 1
        resumed = "–" if row.resumed is None else row.resumed
        one = row.killed.startswith("rank")
        others = "" if not one else "too long" if row.others_s is None else f"{row.others_s:.1f} s"
        end = (row.moment, row.killed or "–", resumed, row.reached, others, row.left)
        print(self.width.format(self.lines, row.lap, *end), flush=True)


def torture(options: argparse.Namespace, work: Path) -> str:
    """The whole of it; what was done, in words. Raises Failed."""
    began = time.monotonic()
    table, draws = Table(), random.Random(options.seed)
    base = _base_weights(options, work) if options.lora else None
    start: Start = Processes(write_config(options, work / "config.yaml", base), options.ranks)
    job = Torture(start, work, options.iterations, draws, table.tell, keeps=options.keep is not None)
    pace = job.undisturbed()
    print(
        f"undisturbed: {options.iterations} iterations, {pace.start_s:.1f} s to the first, then {pace.step_s:.2f} s "
        f"each, {pace.save_s:.2f} s a save",
        flush=True,
    )
    table.head()
    runs = job.disturbed(moments(draws, pace, _goes_on(options, began)))
    return f"{table.lines} starts of {runs} runs, all as the undisturbed one to the bit; no checkpoint was lost"


def _goes_on(options: argparse.Namespace, began: float) -> Callable[[int], bool]:
    if options.hours is not None:
        return lambda _: time.monotonic() - began < options.hours * 3600
    return lambda killed: killed < options.rounds


def _base_weights(options: argparse.Namespace, work: Path) -> Path:
    """A short run from scratch, for adapters to be trained on."""
    few = {"train_iters": 2, "save_interval": 2, "eval_interval": None, "async_save": False}
    config = write_config(options, work / "base.yaml", args=few)
    quiet = Torture(Processes(config, options.ranks), work / "base", 2, random.Random(0), lambda _: None)
    quiet.work.mkdir()
    quiet.undisturbed()
    return runs_below(quiet.work / "undisturbed")[0]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, help="kill for so long")
    length.add_argument("--rounds", type=int, default=ROUNDS, help=f"how many kills (default {ROUNDS})")
    parser.add_argument("--zero-stage", type=int, default=2, choices=range(4), help="default 2")
    parser.add_argument("--ranks", type=int, default=2, help="default 2")
    parser.add_argument("--lora", action="store_true", help="train adapters, on weights that are trained first")
    parser.add_argument("--ema", action="store_true", help="keep a moving average of the weights")
    parser.add_argument("--async-save", action="store_true", help="as of train_video.py")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of who is killed (default 0)")
    parser.add_argument("--iterations", type=int, default=40, help="of a run (default 40)")
    parser.add_argument("--save-interval", type=int, default=3, help="iterations between saves (default 3)")
    parser.add_argument("--base", type=Path, nargs="+", default=[ROOT / "configs" / "quickstart.yaml"],
                        help="config files of the runs (default: the quickstart's)")  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all runs and logs in this folder, a new one")
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    """UserError, all mistakes in one."""
    least = {"hours": 0.01, "rounds": 1, "ranks": 1, "iterations": 1, "save_interval": 1}
    wrong = [(name, getattr(options, name), low) for name, low in least.items()]
    found = [f"--{name.replace('_', '-')} {value}: give {low} or more" for name, value, low in wrong
             if value is not None and not value >= low]  # fmt: skip
    found += [f"--base {path}: there is no such file" for path in options.base if not path.is_file()]
    if options.keep is not None and options.keep.exists():
        found.append(f"--keep {options.keep} is there already: name a new folder")
    if found:
        raise UserError("\n".join(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the verdict; the exit status."""
    try:
        options = _options(arguments)
        if options.keep is not None:
            options.keep.mkdir(parents=True)
        work = options.keep or Path(tempfile.mkdtemp(prefix="torture-"))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    is_over = False
    try:
        print(f"{torture(options, work.resolve())}\npassed")
        is_over = True
    except Failed as error:
        print(f"{error}\nThe runs and their logs are kept in {work}\nFAILED")
        return FAILED
    finally:
        if is_over and options.keep is None:
            shutil.rmtree(work)
    return PASSED


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and end the ranks on the way
    sys.exit(main())
