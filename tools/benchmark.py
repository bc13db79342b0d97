"""How fast are the transformer, a whole training step, the reading of clips, and a step that finds its clips encoded?

    python tools/benchmark.py transformer --model medium --against diffusers --dtype fp32 bf16 --json out.json
    python tools/benchmark.py step --model medium
    python tools/benchmark.py data --frames 49 17 --json out.json
    python tools/benchmark.py cache --text-encoder xl

`transformer` times forward + backward, without recomputation unless --checkpointing is given; --against diffusers runs
diffusers' class of the same size, with the same weights, in turns with ours. `step` runs train_video.py (all weights,
bf16, ZeRO 2, recomputation on) on a synthetic clip and says how much of its time the phases do not account for.
`data` reads 1280×720 H.264 clips that it writes itself, in turns with decoding every frame (the reference's way), and
with decord and torchcodec where they are installed. `cache` trains with encoders of published shape and random weights,
without and with `--cache`, and says what that saves.
Medians of --runs, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

import torch  # noqa: E402

from cogvideox.errors import UserError  # noqa: E402
from cogvideox.platform import device_name  # noqa: E402
from cogvideox.transformer.model import DTYPES  # noqa: E402
from tools.benchmark_cache import benchmark_cache  # noqa: E402
from tools.benchmark_data import benchmark_data  # noqa: E402
from tools.benchmark_sizes import SIZES, TEXT_ENCODERS  # noqa: E402
from tools.benchmark_step import benchmark_step  # noqa: E402
from tools.benchmark_transformer import benchmark_transformer  # noqa: E402

COMMANDS = {
    "transformer": benchmark_transformer,
    "step": benchmark_step,
    "data": benchmark_data,
    "cache": benchmark_cache,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = argparse.ArgumentParser(add_help=False)
    timing.add_argument("--runs", type=int, default=5, help="timed runs of each, after a warm-up; at least 5")
    timing.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    shared = argparse.ArgumentParser(add_help=False, parents=[timing])
    shared.add_argument("--model", choices=SIZES, default="medium")
    transformer = commands.add_parser("transformer", parents=[shared], help="forward + backward of the transformer")
    transformer.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"])
    transformer.add_argument("--device", help="where torch should run it [a GPU if there is one]")
    transformer.add_argument("--against", choices=["diffusers"], help="what to run in turns with ours")
    transformer.add_argument("--positions", choices=["sincos", "rotary"], help="[what the model of that size has]")
    transformer.add_argument("--checkpointing", action="store_true", help="recompute activations")
    step = commands.add_parser("step", parents=[shared], help="a whole step of train_video.py")
    step.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16"])
    cache = commands.add_parser("cache", parents=[shared], help="steps with and without a cache of latents and prompts")
    cache.add_argument("--dtype", choices=DTYPES, default="fp32")
    cache.add_argument("--text-encoder", choices=TEXT_ENCODERS, default="xl", help="which T5 v1.1's shape [xl]")
    cache.add_argument("--vae-channels", type=int, default=128, help="of the VAE's first level; published: 128 [128]")
    for each in (step, cache):
        each.add_argument("--device", choices=["cpu"], help="hide the GPUs from the run")
        each.add_argument("--verbose", action="store_true", help="show the run's output")
    data = commands.add_parser("data", parents=[timing], help="clips read per second")
    data.add_argument("--clips", type=int, default=20, help="how many files [20]")
    data.add_argument("--frames", type=int, nargs="+", default=[49], help="frames of a sample, at 8 fps [49]")
    data.add_argument("--size", type=int, nargs=2, default=[480, 720], metavar=("H", "W"), help="of a sample [480 720]")
    data.add_argument("--window", choices=["first", "random"], default="first", help="where in a clip samples lie")
    args = parser.parse_args(arguments)
    if args.runs < 5:
        parser.error(f"--runs {args.runs}: medians need at least 5")
    return args


def circumstances(arguments: Sequence[str]) -> dict[str, Any]:
    """What the numbers depend on, and the command that repeats them."""
    packages = ("torch", "deepspeed", "SwissArmyTransformer", "diffusers", "av", "decord", "torchcodec")
    return {
        "command": shlex.join(["python", "tools/benchmark.py", *arguments]),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "cpu": {
            "model": _cpu_model(),
            "threads": torch.get_num_threads(),
            "simd": torch.backends.cpu.get_cpu_capability(),
        },
        "device": device_name(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """As Linux names it; elsewhere, what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark; the exit status is 0, or 2 for a mistake in what was given."""
    args = parse(arguments)
    try:
        results = COMMANDS[args.command](args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if args.json is not None:
        given = sys.argv[1:] if arguments is None else arguments
        report = {"benchmark": args.command, "runs": args.runs, **circumstances(given), "results": results}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
