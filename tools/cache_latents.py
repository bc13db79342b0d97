"""Encode a run's clips and captions before it, into the cache that it then trains from.

    python tools/cache_latents.py --base configs/cogvideox_2b_lora.yaml configs/sft.yaml --cache DIR
    torchrun --standalone --nproc_per_node=8 tools/cache_latents.py --base … --cache DIR

Flags and files are those of train_video.py; give both commands the same. What the training, validation and test data
lack in DIR is dealt out to the ranks. After a kill, start again: what was whole is not computed again.
Exit status 0; 2 for a mistake in what was given. Clips that do not decode are named, and left out by the training too.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

from arguments import get_args, initialize_distributed  # noqa: E402
from cogvideox.config.launchers import map_launcher_variables, tell_once  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402

MIB = 2**20


@dataclass(frozen=True)
class Summary:
    """What became of the entries that the data want; bytes are of the cache's files, and of those that came new."""

    there: int
    computed: int
    failed: int
    bytes_used: int
    bytes_new: int
    seconds: float

    def __str__(self) -> str:
        entries = f"{self.there} entries there already, {self.computed} computed"
        failed = f", {self.failed} could not be" if self.failed else ""
        sizes = f"{self.bytes_new / MIB:,.1f} MiB written, {self.bytes_used / MIB:,.1f} MiB in all"
        return f"{entries}{failed}; {sizes}; {self.seconds:.1f} s"


def fill_cache(args: argparse.Namespace) -> Summary:
    """Encode what the data of `args` lack in `args.cache`, every rank its part. Raises UserError."""
    from cogvideox.config import data_set_class
    from cogvideox.data.cache_store import CacheStore
    from cogvideox.parallel import current
    from cogvideox.sat_bridge.building import training_dtype
    from latent_cache import cached

    if not args.cache:
        raise UserError("no cache is named: give its folder as `--cache DIR`, and the same to train_video.py")
    started = time.monotonic()
    initialize_distributed(args)
    data_class = data_set_class(args.data_config)
    create = cached(partial(data_class.create_dataset_function, **args.data_config["params"]), training_dtype(args))
    store = CacheStore(Path(args.cache))
    before, bytes_before = store.keys(), store.bytes_used
    current().host.barrier()  # no rank fills before all have looked
    wanted: set[str] = set()
    for path in dict.fromkeys([*(args.train_data or []), *(args.valid_data or []), *(args.test_data or [])]):
        clips = create(path, args)
        wanted |= {each.key for each in clips.wanted()} | clips.captions().keys()  # type: ignore[attr-defined]
    store.refresh()
    after, bytes_new = store.keys(), store.bytes_used - bytes_before
    counts = len(wanted & before), len(wanted & after - before), len(wanted - after)
    return Summary(*counts, store.bytes_used, bytes_new, time.monotonic() - started)


def main(args_list: list[str] | None = None) -> int:
    """Parse, then encode; the exit status is 0, or 2 for a mistake in what was given, told without a traceback."""
    map_launcher_variables(os.environ)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train_video.py
    try:
        args = get_args(args_list)
    except UserError as error:
        tell_once(error)
        return 2

    from cogvideox.sat_bridge import distributed
    from cogvideox.telemetry.console import log_to_console

    log_to_console(speaks=args.rank == 0)
    try:
        summary = fill_cache(args)
    except UserError as error:
        if distributed.first_to_say(str(error)):
            print(error, file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    if args.rank == 0:
        print(f"{args.cache}: {summary}", flush=True)
    distributed.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
