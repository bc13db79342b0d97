"""Numbers and switches in different places of a config that must agree: a model with its data, its VAE, its text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cogvideox.config.report import Problem
from cogvideox.config.settings import MISSING, Settings
from cogvideox.config.targets import ALIASES

NETWORK = "model.network_config.params"
POSITIONS = f"{NETWORK}.modules.pos_embed_config"
EMBEDDERS = "model.conditioner_config.params.emb_models"
ENCODER = "model.first_stage_config.params.encoder_config.params"
LOSS = "model.loss_fn_config.params"
DATA = "data.params"
OUR_NETWORK = "cogvideox.transformer.model.DiffusionTransformer"
TIME_FACTOR, SPACE_FACTOR = 4, 8  # of the published VAEs, where the config does not say


def check_sizes(settings: Settings) -> list[Problem]:
    """Every number that does not go with another one, each as one problem. Values of the wrong type are passed over:
    the validator names those."""
    config = _Config(settings)
    problems = [*_text_length(config), *_learning(config), *_evaluation(config)]
    if config.has_our_network:
        problems += [*_heads(config), *_ofs(config), *_channels(config)]
        for size in config.clip_sizes:
            problems += [*_picture(config, size), *_frames(config, size)]
    return [*problems, *_pixels(config), *_ranges(config)]


@dataclass(frozen=True)
class _Config:
    settings: Settings

    def get(self, key: str, default: Any = None) -> Any:
        return self.settings.get(key, default)

    def whole(self, key: str, default: int | None = None) -> int | None:
        """The whole number at `key`; `default` where there is none."""
        value = self.get(key)
        is_whole = isinstance(value, int) or isinstance(value, float) and value.is_integer()
        return int(value) if is_whole and not isinstance(value, bool) else default

    def problem(self, key: str, what: str, remedy: str) -> Problem:
        return Problem(self.settings.source(key), key, what, remedy)

    def said(self, key: str) -> str:
        """`name value (file:line)`, to point at the other number."""
        name, source = key.rpartition(".")[2], self.settings.source(key)
        return f"{name} {self.get(key)}" + (f" ({source})" if source else "")

    @property
    def has_our_network(self) -> bool:
        target = self.get("model.network_config.target")
        return isinstance(target, str) and ALIASES.get(target, target) == OUR_NETWORK

    @property
    def patch(self) -> tuple[int, int, int] | None:
        """`patch_size` as (time, height, width); one number is that of height and width."""
        sizes = self.get(f"{NETWORK}.patch_size")
        sizes = [1, sizes, sizes] if isinstance(sizes, int) else sizes
        is_patch = isinstance(sizes, list) and len(sizes) == 3 and all(isinstance(n, int) and n > 0 for n in sizes)
        return (sizes[0], sizes[1], sizes[2]) if is_patch else None

    @property
    def space_factor(self) -> int:
        """Pixels along one side of a latent's cell."""
        levels = self.get(f"{ENCODER}.ch_mult")
        return 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else SPACE_FACTOR

    @property
    def clip_sizes(self) -> list[_ClipSize]:
        """What samples measure: the data's one size, or each of its buckets, as far as they are written rightly."""
        buckets = self.get(f"{DATA}.buckets")
        if not isinstance(buckets, list):
            key, frames_key = f"{DATA}.video_size", f"{DATA}.max_num_frames"
            return [_ClipSize(key, self.get(key), frames_key, self.whole(frames_key))]
        keys = [f"{DATA}.buckets.{place}" for place in range(len(buckets))]
        return [
            _ClipSize(key, each[1:], key, each[0])
            for key, each in zip(keys, buckets, strict=True)
            if isinstance(each, list) and len(each) == 3 and all(isinstance(number, int) for number in each)
        ]

    @property
    def interpolates(self) -> bool:
        """Whether positions beyond the table are asked for."""
        return self.get(f"{POSITIONS}.params.interpolate") is True

    @property
    def positions_are_learned(self) -> bool:
        return self.get(f"{POSITIONS}.params.learnable_pos_embed") is True


@dataclass(frozen=True)
class _ClipSize:
    """A sample's [height, width] and its frames, each with the key that says it."""

    key: str
    picture: Any
    frames_key: str
    frames: int | None


def _text_length(config: _Config) -> Iterator[Problem]:
    key = f"{POSITIONS}.params.text_length"
    length, embedders, where = config.get(key), config.get(EMBEDDERS), config.settings.source(key)
    for index in range(len(embedders) if isinstance(embedders, list) else 0):
        place = f"{EMBEDDERS}.{index}.params.max_length"
        tokens = config.get(place)
        if isinstance(tokens, int) and isinstance(length, int) and tokens != length:
            what = f"{tokens} text tokens, but the transformer's text_length is {length} ({where})"
            yield config.problem(place, what, "make them equal")


def _heads(config: _Config) -> Iterator[Problem]:
    width, heads = (config.whole(f"{NETWORK}.{name}") for name in ("hidden_size", "num_attention_heads"))
    if not width or not heads:
        return
    if width % heads:
        key = f"{NETWORK}.hidden_size"
        what = f"{width} is not divisible by {config.said(f'{NETWORK}.num_attention_heads')}"
        yield config.problem(key, what, f"use {round(width / heads) * heads or heads}")
        return
    for module in ("pos_embed_config", "adaln_layer_config"):
        key = f"{NETWORK}.modules.{module}.params.hidden_size_head"
        size = config.whole(key)
        if size is not None and size != width // heads:
            what = f"{size}, but {width} / {heads} (hidden_size / num_attention_heads) is {width // heads}"
            yield config.problem(key, what, f"use {width // heads}")


def _ofs(config: _Config) -> Iterator[Problem]:
    key, time_key = f"{NETWORK}.ofs_embed_dim", f"{NETWORK}.time_embed_dim"
    width = config.whole(key)
    if width is None:
        if config.get(f"{NETWORK}.ofs") is not None:
            what = "is given, but without ofs_embed_dim the transformer does not read it"
            yield config.problem(f"{NETWORK}.ofs", what, "remove it, or add `ofs_embed_dim: 512` (1.5 I2V)")
        return
    if config.get(time_key) is None:
        time_key = f"{NETWORK}.hidden_size"
    if width != config.get(time_key):
        what = f"{width}, but {config.said(time_key)}: the two embeddings are added"
        yield config.problem(key, what, f"use {config.get(time_key)}")


def _channels(config: _Config) -> Iterator[Problem]:
    """The network reads the noised latent, and in image-to-video the picture's latent beside it."""
    key, out_key = f"{NETWORK}.in_channels", f"{NETWORK}.out_channels"
    channels, out = config.whole(key), config.whole(out_key)
    latent = config.whole(f"{ENCODER}.z_channels", out)
    if out is not None and out != latent:
        what = f"{out}, but the VAE's latents have {latent} ({config.settings.source(f'{ENCODER}.z_channels')})"
        yield config.problem(out_key, what, f"use {latent}")
    if channels is None or latent is None:
        return
    if config.get("model.noised_image_input") is True:
        if channels != 2 * latent:
            where = config.settings.source("model.noised_image_input")
            what = f"{channels}, but with noised_image_input ({where}) it is {latent} of the latent and {latent} of"
            yield config.problem(key, f"{what} the picture's", f"use {2 * latent}, or remove noised_image_input")
    elif channels != latent:
        what = f"{channels}, but the VAE's latents have {latent} channels"
        remedy = f"use {latent}, or for image-to-video (twice as many) set `noised_image_input: true` below `model:`"
        yield config.problem(key, what, remedy)


def _picture(config: _Config, clip: _ClipSize) -> Iterator[Problem]:
    """A picture is cut into whole tokens, no more of them than there are positions for."""
    key, size, patch = clip.key, clip.picture, config.patch
    if patch is None or not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)):
        return
    units = [config.space_factor * side for side in patch[1:]]
    if any(each % unit or each <= 0 for each, unit in zip(size, units, strict=True)):
        near = [max(unit, round(each / unit) * unit) for each, unit in zip(size, units, strict=True)]
        what = f"{size} is not divisible by {units[0]} (VAE {config.space_factor} × patch {patch[1]})"
        yield config.problem(key, what, f"use {near}")
        return
    rows, columns = (config.whole(f"{NETWORK}.{name}") for name in ("latent_height", "latent_width"))
    if config.interpolates or rows is None or columns is None:
        return
    limits = [table // side * unit for table, side, unit in zip((rows, columns), patch[1:], units, strict=True)]
    if any(each > limit for each, limit in zip(size, limits, strict=True)):
        height, width = (max(1, each // config.space_factor) for each in size)
        given = f"{config.said(f'{NETWORK}.latent_height')} and {config.said(f'{NETWORK}.latent_width')}"
        what = f"{size} is beyond the positions, which go up to {limits} pixels: {given}"
        raised = f"raise them to {max(height, rows)} and {max(width, columns)}"
        yield config.problem(key, what, _within(config, f"at most {limits}", raised))


def _frames(config: _Config, clip: _ClipSize) -> Iterator[Problem]:
    """As many frames as the VAE takes, and no more than there are positions for."""
    key, table_key = clip.frames_key, f"{NETWORK}.num_frames"
    frames, table, patch = clip.frames, config.whole(table_key), config.patch
    factor = config.whole(f"{NETWORK}.time_compressed_rate", TIME_FACTOR) or TIME_FACTOR
    if frames is None or patch is None:
        return
    if frames < 1 or (frames - 1) % factor:
        lower = max(0, (frames - 1) // factor) * factor + 1
        what = f"{frames} is not {factor}k + 1: the VAE makes a latent of the first frame, then one of every {factor}"
        yield config.problem(key, what, f"use {lower} or {lower + factor}")
        return
    if table is None or config.interpolates:
        return
    tokens, limit = (math.ceil(((count - 1) // factor + 1) / patch[0]) for count in (frames, table))
    if tokens > limit:
        longest = (limit * patch[0] - 1) * factor + 1
        what = f"{frames} frames are beyond the positions, which go up to {longest}: {config.said(table_key)}"
        yield config.problem(key, what, _within(config, f"at most {longest}", f"raise it to {frames}"))


def _within(config: _Config, limit: str, raised: str) -> str:
    """What to do about a size beyond the positions; those that were learned are as many as they are."""
    squeeze = f"set {POSITIONS}.params.interpolate=true (positions are squeezed)"
    if config.positions_are_learned:
        return f"use {limit}, or {squeeze}"
    return f"use {limit}, {raised}, or {squeeze}"


def _pixels(config: _Config) -> Iterator[Problem]:
    """Latents in place of clips leave nothing to make pictures of."""
    if config.get("model.latent_input") is not True:
        return
    needs = {"noised_image_input": "encodes the first frame", "lr_scale": "makes clips coarser"}
    for name, reason in needs.items():
        if config.get(f"model.{name}") not in (None, False):
            where = config.settings.source(f"model.{name}")
            what = f"is true, but {name} ({where}) {reason}: it needs pixels"
            yield config.problem("model.latent_input", what, f"set it to false and give clips, or remove {name}")


def _learning(config: _Config) -> Iterator[Problem]:
    prefixes = config.get("model.not_trainable_prefixes")
    adapters = config.get(f"{NETWORK}.modules.lora_config")
    if isinstance(prefixes, list) and "all" in prefixes and adapters is None and config.has_our_network:
        remedy = "list configs/lora.yaml after the model's file, or remove the prefix"
        yield config.problem("model.not_trainable_prefixes", f"{prefixes} leaves nothing to train", remedy)


def _evaluation(config: _Config) -> Iterator[Problem]:
    """Evaluations draw samples: better to say it now than at the first one."""
    has_model = isinstance(config.get("model"), Mapping)
    if has_model and config.get("args.eval_interval") is not None and config.get("model.sampler_config") is None:
        what = "is missing, and evaluations draw samples with it"
        yield config.problem("model.sampler_config", what, "add it, or do without: args.eval_interval=null")


# Key → smallest value, largest value, what it is.
_RANGES: dict[str, tuple[float, float, str]] = {
    "model.noised_image_dropout": (0, 1, "it is a probability"),
    "model.en_and_decode_n_samples_a_time": (1, math.inf, "it is a number of clips"),
    "model.lr_scale": (1, math.inf, "clips are made smaller by it"),
    f"{LOSS}.fixed_frames": (0, math.inf, "it is a number of latent frames"),
    f"{LOSS}.offset_noise_level": (0, math.inf, "it is a standard deviation"),
    f"{LOSS}.min_snr_value": (0, math.inf, "it caps a weight"),
}


def _ranges(config: _Config) -> Iterator[Problem]:
    for key, (least, most, meaning) in _RANGES.items():
        value = config.get(key, MISSING)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and not least <= value <= most:
            wanted = f"{least:g} to {most:g}" if most < math.inf else f"at least {least:g}"
            yield config.problem(key, f"is {value}", f"{meaning}: give {wanted}")
