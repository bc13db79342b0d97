"""Whether the checkpoints of a run fit onto its disk: told when it begins, not when the first of them fails."""

from __future__ import annotations

import argparse
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from cogvideox.checkpoint.choosing import checkpoints_of
from cogvideox.checkpoint.durable import in_units
from cogvideox.parallel import current
from cogvideox.sat_bridge.optimizer import EmaAdamW

logger = logging.getLogger(__name__)

MASTERS, MOMENT = 4, 4  # bytes for each trained parameter


def tell_of_room(engine: Any, args: argparse.Namespace, folder: Path, *, adapters_only: bool) -> None:
    """On rank 0, log what the checkpoints to come take; a warning where the disk of `folder` has not the room."""
    if current().world.rank != 0:
        return
    each = expected_bytes(engine, adapters_only=adapters_only)
    try:
        due = checkpoints_due(args, len(checkpoints_of(folder)))
        free = shutil.disk_usage(folder).free
    except OSError:  # a save says more of it
        return
    plan = f"room for {due} more checkpoint{'s'[: due > 1]} of about {in_units(each)} is needed, {in_units(free)} free"
    if each * due <= free:
        logger.info("%s", plan)
    elif each > free:
        logger.warning("%s: NOTHING CAN BE SAVED: make room, or choose another --save than %s", plan, folder.parent)
    else:
        fewer = "" if args.save_total_limit == 1 and not args.keep_every else ", or keep fewer (--save-total-limit)"
        fit = f"only {free // each} will fit" if free // each > 1 else "only one will fit"
        logger.warning("%s: %s: make room%s", plan, fit, fewer)


def expected_bytes(engine: Any, *, adapters_only: bool) -> int:
    """About what one checkpoint takes, of all ranks together: weights, an optimizer with two moments, averages."""
    is_cut = engine.zero_optimization_partition_weights()
    parameters = list(engine.module.parameters())
    sizes = [each.ds_numel if is_cut else each.numel() for each in parameters]
    trained = sum(size for size, each in zip(sizes, parameters, strict=True) if each.requires_grad)
    weights = (trained if adapters_only else sum(sizes)) * parameters[0].element_size()
    if is_cut and not adapters_only:  # ZeRO 3's parts of what is frozen, beside the whole
        weights += (sum(sizes) - trained) * parameters[0].element_size()
    per_trained = 2 * MOMENT
    if engine.zero_optimization() or parameters[0].element_size() < MASTERS:
        per_trained += MASTERS
    if isinstance(engine.basic_optimizer, EmaAdamW):
        per_trained += MOMENT + parameters[0].element_size()
    return (weights + per_trained * trained) * current().model.size


def checkpoints_due(args: argparse.Namespace, present: int) -> int:
    """How many more than the `present` ones will lie on the disk at once, with one that is being written."""
    ahead = args.train_iters - args.iteration
    due = math.ceil(ahead / (args.save_interval or args.train_iters))
    if args.save_total_limit:
        kept = args.save_total_limit + (ahead // args.keep_every if args.keep_every else 0) + _has_best(args)
        due = min(due, kept + 1 - present)
    return max(1, due)


def _has_best(args: argparse.Namespace) -> bool:
    """Whether a checkpoint stays because its evaluation was the best."""
    return bool(args.eval_interval) and args.eval_interval <= args.train_iters
