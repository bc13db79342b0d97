"""Fine-tune a CogVideoX model: `python train_video.py --base MODEL.yaml sft.yaml [flags]`.

`main` maps the launcher's variables, reads the configuration, and hands one training step, one evaluation step and a
data set factory to SwissArmyTransformer. The loop is SAT's `training_main` in `sat/training/deepspeed_training.py`; the
places where we bend it are listed in `cogvideox/sat_bridge/bridge.py`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arguments import get_args, initialize_distributed
from cogvideox.config.launchers import map_launcher_variables, tell_once
from cogvideox.errors import UserError, config_without_credentials
from cogvideox.sat_bridge import stopping

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def forward_step(
    data_iterator: Iterator[Any],
    model: Any,
    args: argparse.Namespace,
    timers: Any,
    data_class: type | None = None,  # noqa: ARG001  (the reference's signature)
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One training step's loss, a scalar on the device, and what makes it up; SAT calls this for every micro-batch."""
    from cogvideox.parallel import current

    batch = _next_batch(data_iterator, timers)
    if current().world.rank == 0:
        save_training_config(args)
    batch["global_step"] = args.iteration
    return model.shared_step(batch)


def forward_step_eval(
    data_iterator: Iterator[Any],
    model: Any,
    args: argparse.Namespace,
    timers: Any,
    only_log_video_latents: bool = False,
    data_class: type | None = None,  # noqa: ARG001  (the reference's signature)
    report_videos: Any = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One evaluation step's loss as in training, after sample videos of the batch were drawn and saved.

    `report_videos(iteration, {key: [mp4 paths]}, fps)` is told of videos that were written.
    """
    import torch

    batch = _next_batch(data_iterator, timers)
    if "mp4" in batch and batch["mp4"].dim() == 6:
        batch = flatten_views(batch)
    log_video(batch, model, args, only_log_video_latents, report_videos)
    batch["global_step"] = args.iteration
    loss, metrics = model.shared_step(batch)
    return loss, {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in metrics.items()}


def _next_batch(data_iterator: Iterator[Any], timers: Any) -> dict[str, Any]:
    """The next batch on the device, read on the first rank of each model parallel group and sent to the others."""
    from cogvideox.data.batches import broadcast_batch, to_device
    from cogvideox.parallel import current

    batch: dict[str, Any] = {}
    if current().model.rank == 0:
        timers("data loader").start()
        batch = next(data_iterator)
        timers("data loader").stop()
        batch = to_device(batch)
    return broadcast_batch(batch)


def flatten_views(batch: dict[str, Any]) -> dict[str, Any]:
    """Multi-view clips (B,V,F,C,H,W) → (B·V,F,C,H,W); `txt`, a list over views of lists over samples, alike."""
    samples, views = batch["mp4"].shape[:2]
    texts = [batch["txt"][view][sample] for sample in range(samples) for view in range(views)]
    repeated = {key: batch[key].repeat_interleave(views) for key in ("num_frames", "fps") if key in batch}
    return batch | repeated | {"mp4": batch["mp4"].flatten(0, 1), "txt": texts}


def save_training_config(args: argparse.Namespace) -> None:
    """Write the merged config, as run, into the run's folder, once."""
    from omegaconf import OmegaConf

    path = Path(args.save) / "training_config.yaml"
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(config_without_credentials(args.merged_config)), path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): make room there, or choose another --save") from error


def log_video(
    batch: dict[str, Any],
    model: Any,
    args: argparse.Namespace,
    only_log_video_latents: bool = False,
    report_videos: Any = None,
) -> None:
    """Sample videos of `batch` on data parallel rank 0 and save them with their captions in the run's folder.

    Under ZeRO 3 every rank holds a part of the weights, so all must take part in the sampling.
    """
    from cogvideox.parallel import current
    from cogvideox.telemetry.evaluation_samples import save_samples

    groups = current()
    if groups.data.rank != 0 and args.zero_stage < 3:
        return
    videos = model.log_video(batch, only_log_video_latents=only_log_video_latents)
    if groups.world.rank == 0:
        try:
            written = save_samples(videos, batch, Path(args.save), args.iteration, args.eval_batch, args.eval_split)
        except OSError as error:
            logger.warning("the samples of iteration %d are not all saved, training goes on: %s", args.iteration, error)
            return
        if report_videos is not None and written:
            report_videos(args.iteration, written, int(batch["fps"][0]))


def train(args: argparse.Namespace) -> int:
    """Everything after the arguments: groups, data class, SAT's loop. 1 if its last step is not saved, else 0."""
    import yaml

    from cogvideox.config import data_set_class
    from cogvideox.sat_bridge import endings
    from cogvideox.sat_bridge.bridge import bent
    from cogvideox.sat_bridge.building import training_dtype
    from cogvideox.sat_bridge.watchdog import watching
    from cogvideox.telemetry.console import log_to_console
    from cogvideox.telemetry.phases import phases

    log_to_console(speaks=args.rank == 0)
    for note in args.config_notes:
        logger.info("%s", note)
    if args.profile_phases:
        phases.enable()
    args.log_config = [yaml.safe_load(Path(base).read_text(encoding="utf-8")) for base in args.base]
    initialize_distributed(args)
    data_class = data_set_class(args.data_config)
    create_dataset_function: Any = partial(data_class.create_dataset_function, **args.data_config["params"])
    if args.cache:
        from latent_cache import cached

        create_dataset_function = cached(create_dataset_function, training_dtype(args))
    with endings.attached(args) as lifeline:
        with bent(args) as run, watching(args.stall_timeout_s, run.folder, lifeline):
            run_loop(args, data_class, create_dataset_function, run.reporter.videos)
        return stopping.farewell(run)


def run_loop(args: argparse.Namespace, data_class: type, create_dataset_function: Any, report_videos: Any) -> None:
    """SAT's `training_main`, as it is bent, from the data sets to the last checkpoint."""
    from sat.training.deepspeed_training import training_main

    from diffusion_video import SATVideoDiffusionEngine

    training_main(
        args,
        model_cls=SATVideoDiffusionEngine,
        forward_step_function=partial(forward_step, data_class=data_class),
        forward_step_eval=partial(
            forward_step_eval,
            data_class=data_class,
            only_log_video_latents=args.only_log_video_latents,
            report_videos=report_videos,
        ),
        create_dataset_function=create_dataset_function,
    )


def main(args_list: list[str] | None = None) -> int:
    """Parse, then train; the exit status is 0, also where a signal ended the training early and it is saved, 2 for a
    mistake in what was given, 1 for numbers that went wrong, both without a traceback, and 1 for other failures.
    """
    with stopping.installed() as stops:
        map_launcher_variables(os.environ)
        # Before torch is loaded: threads that wait for each other sleep instead of spinning. No slower on an idle CPU,
        # and on one that others use too the difference between a slow step and a twenty times slower one.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            args = get_args(args_list)
        except UserError as error:
            tell_once(error)
            return 2
        stops.max_hours = args.max_hours

        from cogvideox.sat_bridge import distributed, endings

        try:
            status = train(args)
        except Exception as error:
            return endings.tell(error)
        # Only here: after a failure this would wait for ranks that are busy elsewhere.
        distributed.shutdown()
        return status


if __name__ == "__main__":
    exit_status = main()
    stopping.ignore_signals()  # all is done
    sys.exit(exit_status)
