"""Draw videos from prompts: `python sample_video.py --run RUN --prompt "…"`, or `--base MODEL.yaml --load CHECKPOINT`.

`main` reads and checks the settings, `draw` deals the clips out to the ranks, and a `Studio` makes them: captions →
conditioning, noise → latents, latents → mp4, with a JSON file of all settings beside each.

# B batch, T latent frames, C channels, h w latent size
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cogvideox.config.launchers import map_launcher_variables, tell_once
from cogvideox.config.sampling import SamplingArguments, get_sampling_arguments
from cogvideox.config.sampling_record import Job, images_of, jobs_of, record_of, unfinished
from cogvideox.data.sample_files import save_latents, write_record
from cogvideox.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cogvideox.checkpoint.loading import StartingWeights

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Studio:
    """An engine with its weights, and the settings to draw with."""

    def __init__(self, arguments: SamplingArguments) -> None:
        """Raises UserError: weights that are missing, damaged or of another model; a size that does not fit."""
        from cogvideox.checkpoint.inference import weights_to_sample_with
        from cogvideox.parallel import current
        from cogvideox.sat_bridge.building import get_model
        from diffusion_video import SATVideoDiffusionEngine

        file, ranks = arguments.checkpoint.file, current().model
        # Mapped into memory, so that a weight file that is missing is told before the model is built.
        chain = weights_to_sample_with(file, arguments.use_ema, arguments.base_weights, ranks.rank, ranks.size)
        precision = {name: arguments.precision == name for name in ("fp16", "bf16")}
        config = _for_sampling(arguments.model_config)
        namespace = argparse.Namespace(model_config=config, seed=arguments.seed, **precision)
        self.arguments = arguments
        self.engine = cast(Any, get_model(namespace, SATVideoDiffusionEngine).eval().requires_grad_(False))
        self.shape = self.engine.latent_shape(arguments.clip.frames, arguments.clip.height, arguments.clip.width)
        self._load(chain)

    def _load(self, chain: Sequence[StartingWeights]) -> None:
        from cogvideox.transformer.lora import LoraLinear

        for place, weights in enumerate(chain):
            self.engine.load_weights(weights, allow_missing=place > 0)
        for module in self.engine.modules():
            if isinstance(module, LoraLinear):
                module.scaling *= self.arguments.lora_scale

    def latents(self, jobs: Sequence[Job]) -> Tensor:
        """Scaled latents (B,T,C,h,w) of the clips; each one's noise is its own, whatever it is drawn together with."""
        from cogvideox.diffusion.noise import NoiseOfSamples

        cond, uc = self._conditioning([job.prompt.text for job in jobs])
        return self.engine.sample(
            cond,
            uc,
            batch_size=len(jobs),
            shape=self.shape,
            image_latents=self._image_latents(jobs) if self.arguments.takes_image else None,
            num_steps=self.arguments.num_steps,
            scale=self.arguments.asked_scale,
            draw_noise=NoiseOfSamples([self._seed(job) for job in jobs]),
        )

    def _seed(self, job: Job) -> tuple[int, int, int]:
        return self.arguments.seed, job.prompt_number, job.sample_number

    def _conditioning(self, texts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Conditioning and unconditional conditioning, which is zeros, or the negative prompt's."""
        import torch

        clip, count, negative = self.arguments.clip, len(texts), self.arguments.negative_prompt
        batch = {"txt": texts, "num_frames": torch.full((count,), clip.frames), "fps": torch.full((count,), clip.fps)}
        conditioner = self.engine.conditioner
        pair = conditioner.get_unconditional_conditioning(
            batch,
            None if negative is None else batch | {"txt": [negative] * count},
            force_uc_zero_embeddings=[each.input_key for each in conditioner.embedders] if negative is None else [],
        )
        device, dtype = self.engine.device, self.engine.dtype
        cond, uc = ({name: value.to(device, dtype) for name, value in each.items()} for each in pair)
        return cond, uc

    def _image_latents(self, jobs: Sequence[Job]) -> Tensor:
        """(B,1,C,h,w), each drawn from the VAE's posterior by the clip's own seed."""
        import torch

        from cogvideox.data.pictures import read_picture
        from cogvideox.diffusion.noise import generator_of

        latents = []
        for job in jobs:
            assert job.prompt.image is not None
            picture = read_picture(job.prompt.image, self.arguments.clip.size)
            # The engine draws from the global generator; the 1 sets this draw apart from the clip's noise.
            torch.manual_seed(generator_of(*self._seed(job), 1).initial_seed())
            latents.append(self.engine.encode_images(picture[None]))
        return torch.cat(latents)

    def make(self, jobs: Sequence[Job]) -> None:
        """Draw clips together and write them; of the ranks that share a model the first writes, and a UserError of its
        is raised on all of them.
        """
        import torch

        from cogvideox.parallel import current

        with torch.no_grad():
            latents = self.latents(jobs)
            if self.arguments.latents_only:
                results = latents.float() / self.engine.scale_factor
            else:
                results = self.engine.decode_clips(latents, self.arguments.latents_per_chunk)
        current().model.on_first(lambda: self._write(jobs, results.cpu()))

    def _write(self, jobs: Sequence[Job], results: Tensor) -> None:
        from cogvideox.data.writing import write_video

        for job, result in zip(jobs, results, strict=True):
            try:
                write_record(job.path, record_of(self.arguments, job))
                if self.arguments.latents_only:
                    save_latents(job.path, result)
                else:
                    write_video(job.path, result, self.arguments.clip.fps)
            except OSError as error:
                raise UserError(f"cannot write {job.path}: {error.strerror or error}") from error


def _for_sampling(model_config: dict[str, Any]) -> dict[str, Any]:
    """The model with one clip at a time in the VAE, and with the sampler's progress bar on a terminal only."""
    sampler = model_config["sampler_config"]
    params = {**(sampler.get("params") or {}), "verbose": sys.stderr.isatty()}
    at_a_time = model_config.get("en_and_decode_n_samples_a_time") or 1
    return {
        **model_config,
        "en_and_decode_n_samples_a_time": at_a_time,
        "sampler_config": {**sampler, "params": params},
    }


def draw(arguments: SamplingArguments) -> None:
    """Everything after the arguments. Raises UserError."""
    from cogvideox.config.sampling_talk import typed_jobs
    from cogvideox.data.pictures import check_pictures
    from cogvideox.sat_bridge.distributed import initialize
    from cogvideox.telemetry.console import log_to_console

    log_to_console(speaks=arguments.rank == 0)
    for note in arguments.notes:
        logger.info("%s", note)
    check_machine(arguments)
    # No rank gets past `initialize` before all are there, so that each sees the folder as it was before the run.
    jobs = unfinished(arguments, jobs_of(arguments, arguments.prompts))
    if not (jobs or arguments.is_interactive):
        logger.info("nothing to do: all clips are in %s, drawn with these settings", arguments.output_dir)
        return
    check_pictures(images_of(jobs), arguments.clip.size)
    initialize(_world_of(arguments))
    studio = _together(partial(Studio, arguments))
    for part in typed_jobs(arguments) if arguments.is_interactive else [jobs]:
        _together(partial(make_all, studio, part))


def _together(function: Callable[[], T]) -> T:
    """What `function` gives on this rank, once all ranks have called theirs; a UserError of some is raised on all."""
    from cogvideox.parallel import current

    result, mistake = None, None
    try:
        result = function()
    except UserError as error:
        mistake = str(error)
    mistakes = dict.fromkeys(each for each in current().host.gather_objects(mistake) if each is not None)
    if mistakes:
        raise UserError("\n".join(mistakes))
    return cast(T, result)


def make_all(studio: Studio, jobs: Sequence[Job]) -> None:
    """This rank's share of the jobs, a batch at a time, with a progress bar on rank 0's terminal."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from cogvideox.parallel import current

    data, size = current().data, studio.arguments.batch_size
    own = jobs[data.rank :: data.size]
    is_shown = current().world.rank == 0 and sys.stderr.isatty()
    with logging_redirect_tqdm(), tqdm(total=len(own), desc="clips", unit="clip", disable=not is_shown) as bar:
        for first in range(0, len(own), size):
            part = own[first : first + size]
            studio.make(part)
            bar.update(len(part))
            for job in part:
                logger.info("wrote %s", job.path)


def check_machine(arguments: SamplingArguments) -> None:
    """Raises UserError where this machine cannot do what is asked."""
    from cogvideox.platform import device_count

    gpus = device_count()
    if not gpus and arguments.precision == "fp16":
        raise UserError("float16 needs a GPU, and there is none here: use `--precision bf16` or `--precision fp32`")
    if gpus and arguments.local_rank >= gpus:
        raise UserError(f"local rank {arguments.local_rank} needs a GPU of its own: start {gpus} processes here")


def _world_of(arguments: SamplingArguments) -> argparse.Namespace:
    """What starting the process group wants to know, under SAT's names."""
    from cogvideox.platform import distributed_backend

    return argparse.Namespace(
        rank=arguments.rank,
        world_size=arguments.world_size,
        local_rank=arguments.local_rank,
        model_parallel_size=arguments.model_parallel_size,
        seed=arguments.seed,
        distributed_backend=distributed_backend(),
    )


def main(args_list: list[str] | None = None) -> int:
    """Parse, then draw; the exit status is 0, or 2 for a mistake in what was given, told without a traceback."""
    map_launcher_variables(os.environ)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train_video.py
    try:
        arguments = get_sampling_arguments(sys.argv[1:] if args_list is None else args_list)
    except UserError as error:
        tell_once(error)
        return 2

    from cogvideox.sat_bridge import distributed

    try:
        draw(arguments)
    except UserError as error:
        if distributed.first_to_say(str(error)):
            sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    distributed.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
