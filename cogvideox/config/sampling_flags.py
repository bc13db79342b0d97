"""The flags of sample_video.py, as a table. YAML's `args:` keys are these names, and the reference's for the same.

Keys of `args:` that are in neither this table nor training's are errors; those of training alone are passed over.
"""

from __future__ import annotations

from typing import Any, Literal

from cogvideox.config.flags import MOST_SEED, Flag

Precision = Literal["fp32", "fp16", "bf16"]
# `--sampler` → the class that draws.
SAMPLERS: dict[str, str] = {
    "dpmpp": "cogvideox.diffusion.sampler.VPSDEDPMPP2MSampler",
    "ddim": "cogvideox.diffusion.sampler.VideoDDIMSampler",
}
Sampler = Literal["dpmpp", "ddim"]

_MODEL = [
    Flag("base", list[str], [], "YAML files, merged in order: a model's, then configs/inference.yaml", only_flag=True),
    Flag("run", str | None, None, "folder of a training run: its config and its latest checkpoint", only_flag=True),
    Flag("load", str | None, None, "weights: a folder of checkpoints (a run's, SAT's), one checkpoint's folder, a "
         "diffusers folder or a weight file"),
    Flag("iteration", int | None, None, "of --run or a folder of checkpoints: this one in place of the latest", 0),
    Flag("base-weights", str | None, None, "weights under a checkpoint of adapters, if not where it says"),
    Flag("ema", bool, False, "the moving average of the weights (mp_rank_00_ema_states.pt beside the model file)"),
    Flag("lora-scale", float | None, None, "multiplies the LoRA adapters: 0 is the model without them [1]"),
    Flag("precision", Precision | None, None, "what to compute in; as the config trains if not given"),
    Flag("model-parallel-size", int, 1, "ranks that share one copy of the model", 1),
    Flag("allow-target", list[str], [], "Python modules that `target:` may name besides ours", only_flag=True),
]  # fmt: skip

_PROMPTS = [
    Flag("prompt", list[str], [], "a prompt, or prompt@@image for an image-to-video model; may be given repeatedly",
         only_flag=True),
    Flag("prompts", str | None, None, "text file with a prompt a line; blank lines and lines with # in front are "
         "passed over"),
    Flag("interactive", bool, False, "ask for prompts until an empty line, `exit` or Ctrl-D"),
    Flag("negative-prompt", str | None, None, "what guidance leads away from; nothing (zeros) if not given"),
]  # fmt: skip

_CLIP = [
    Flag("frames", int | None, None, "frames of a clip, 4k+1; the model's, or those of `data:`, if not given", 1),
    Flag("height", int | None, None, "in pixels, a multiple of 16; as --frames if not given", 16),
    Flag("width", int | None, None, "in pixels, a multiple of 16; as --frames if not given", 16),
    Flag("fps", int | None, None, "frames per second of the written mp4; as --frames if not given", 1),
    Flag("seed", int, 1234, "with a prompt's and a sample's number it decides all noise", 0, maximum=MOST_SEED),
    Flag("num-samples", int, 1, "clips a prompt", 1),
    Flag("num-steps", int | None, None, "sampling steps; sampler_config's if not given", 2),
    Flag("guidance-scale", float | None, None, "guider_config's scale if not given; 1 is no guidance", 0.0),
    Flag("sampler", Sampler | None, None, "dpmpp (DPM++ 2M SDE) or ddim; sampler_config's if not given"),
    Flag("batch-size", int, 1, "clips drawn at once on a rank; the clips do not depend on it", 1),
    Flag("latents-per-chunk", int | None, None, "latent frames that the VAE decodes at a time: the same clip in less "
         "memory; whole, or as large as the device can index, if not given", 1),
]  # fmt: skip

_OUTPUT = [
    Flag("output-dir", str | None, None, "folder for the clips [samples, or RUN/samples/ITERATION with --run]"),
    Flag("overwrite", bool, False, "replace clips in it that were drawn with other settings"),
    Flag("latents-only", bool, False, "save latents, do not decode them"),
    Flag("local-rank", int | None, None, "set by the launcher", only_flag=True),
]

_REFERENCE = [
    Flag("input-type", Literal["cli", "txt"] | None, None, "cli is --interactive, txt is --prompts INPUT-FILE"),
    Flag("input-file", str | None, None, "the same as --prompts"),
    Flag("sampling-num-frames", int | None, None, "latent frames in place of --frames: 13 are 49 frames (1.5: 22 are "
         "81)", 1),
    Flag("sampling-image-size", list[int] | None, None, "height and width in one"),
    Flag("sampling-fps", int | None, None, "the same as --fps", 1),
    Flag("only-save-latents", bool, False, "the same as --latents-only"),
    Flag("image2video", bool, False, "refuse a model that takes no image"),
    Flag("force-inference", bool, False, "adapters may be missing from a checkpoint anyway, other weights never"),
    Flag("latent-channels", int | None, None, "the network's out_channels says it"),
]  # fmt: skip

SAMPLING_GROUPS: dict[str, list[Flag]] = {
    "model": _MODEL,
    "prompts": _PROMPTS,
    "clips": _CLIP,
    "output": _OUTPUT,
    "the reference's names": _REFERENCE,
}
# Accepted for the reference's files and without effect.
INERT_SAMPLING_KEYS = ("force_inference", "latent_channels")
SAMPLING_FLAGS: dict[str, Flag] = {flag.key: flag for flags in SAMPLING_GROUPS.values() for flag in flags}
SAMPLING_KEYS: dict[str, Any] = {key: flag for key, flag in SAMPLING_FLAGS.items() if not flag.only_flag}
