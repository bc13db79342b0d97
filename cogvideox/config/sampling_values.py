"""What a sampling run's settings come to, where several keys can say the same: the command line wins, then our own
names, then the reference's, then `data:`, then what the model was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cogvideox.config.fitting import Misfit, fit
from cogvideox.config.sampling_flags import SAMPLERS, SAMPLING_FLAGS
from cogvideox.config.settings import Settings
from cogvideox.config.targets import ALIASES

NETWORK = "model.network_config.params"
SAMPLER = "model.sampler_config"
ENCODER = "model.first_stage_config.params.encoder_config.params"
TIME_FACTOR, SPACE_FACTOR = 4, 8  # of the published VAEs, where the config does not say
DEFAULT_FPS = 8
# Which keys give the frames, height, width and fps of a clip, and the place in a list that they may have there.
CLIP_KEYS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("args.frames", "args.sampling_num_frames", "data.params.max_num_frames"), 0),
    (("args.height", "args.sampling_image_size", "data.params.video_size"), 0),
    (("args.width", "args.sampling_image_size", "data.params.video_size"), 1),
    (("args.fps", "args.sampling_fps", "data.params.fps"), 0),
)
# The same of the clips that CogVideoX 1.5 was trained on; its positions go far beyond them.
NATIVE_OF_1_5 = (81, 768, 1360, 16)


@dataclass(frozen=True)
class Clip:
    """The size of a clip, in frames and pixels, its frames per second, and the settings that gave length and size."""

    frames: int
    height: int
    width: int
    fps: int
    frames_key: str = ""
    size_key: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width


class SamplingValues:
    """Reads merged settings; values of the wrong type are read as if they were not there, the checks name those."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def of(self, name: str) -> Any:
        """A flag's value, its default where nothing is given."""
        flag = SAMPLING_FLAGS[name]
        value = self._settings.get(f"args.{name}")
        try:
            return flag.default if value is None else fit(value, flag.annotation)
        except Misfit:
            return flag.default

    def winner(self, *keys: str) -> str | None:
        """Of the keys that are given, the first on the command line, else the first."""
        given = [key for key in keys if self._settings.get(key) is not None]
        return next((key for key in given if self._settings.is_from_command_line(key)), next(iter(given), None))

    @property
    def base_weights(self) -> str | None:
        return self.of("base_weights")

    @property
    def takes_image(self) -> bool:
        """Whether the model draws from a first frame."""
        return self._settings.get("model.noised_image_input") is True

    @property
    def sampler(self) -> str | None:
        return self.of("sampler")

    @property
    def sampler_name(self) -> str:
        """The flag's name for the sampler in force, or its class's dotted path."""
        target = str(self._settings.get(f"{SAMPLER}.target"))
        real = ALIASES.get(target, target)
        return next((name for name, path in SAMPLERS.items() if path == real), real)

    @property
    def num_steps(self) -> int:
        """0 where nobody says."""
        given = self.of("num_steps")
        return _whole(self._settings.get(f"{SAMPLER}.params.num_steps"), 0) if given is None else given

    @property
    def guidance_scale(self) -> float | None:
        """The scale in force; None without a guider."""
        guider = self._settings.get(f"{SAMPLER}.params.guider_config")
        given = self.of("guidance_scale")
        return self._settings.get(f"{SAMPLER}.params.guider_config.params.scale") if guider and given is None else given

    @property
    def guider(self) -> str | None:
        """The guider's class, without its module."""
        target = self._settings.get(f"{SAMPLER}.params.guider_config.target")
        return str(target).rpartition(".")[2] if target else None

    @property
    def counts_as_the_reference(self) -> bool:
        """The reference's files mean by `batch_size` how many clips a prompt gets, one after the other."""
        key = "args.batch_size"
        is_from_file = self._settings.get(key) is not None and not self._settings.is_from_command_line(key)
        is_theirs = self.winner("args.input_type", "args.sampling_num_frames") is not None
        return is_from_file and is_theirs and self.winner("args.num_samples") is None and self.of("batch_size") > 1

    @property
    def num_samples(self) -> int:
        return self.of("batch_size" if self.counts_as_the_reference else "num_samples")

    @property
    def precision(self) -> str:
        """`--precision`, else what the config trains in."""
        if (given := self.of("precision")) is not None:
            return given
        sections = {"fp16": ("fp16",), "bf16": ("bf16", "bfloat16")}
        for name, places in sections.items():
            keys = [f"deepspeed.{place}.enabled" for place in places] + [f"args.{name}"]
            said = [self._settings.get(key) for key in keys]
            if next((each for each in said if each is not None), False) is True:
                return name
        return "fp32"

    @property
    def clip(self) -> Clip | None:
        """Frames, height, width and rate of the clips; None where the model says too little of itself."""
        keys = [self.winner(*names) for names, _ in CLIP_KEYS]
        native = self._native or (None,) * len(CLIP_KEYS)
        numbers = [self._number(key, place) for key, (_, place) in zip(keys, CLIP_KEYS, strict=True)]
        frames, height, width, fps = (
            own if given is None else given for given, own in zip(numbers, native, strict=True)
        )
        if frames is None or height is None or width is None:
            return None
        return Clip(frames, height, width, fps or DEFAULT_FPS, keys[0] or NETWORK, keys[1] or NETWORK)

    def _number(self, key: str | None, place: int) -> int | None:
        value = self._settings.get(key) if key else None
        if isinstance(value, (list, tuple)):
            value = value[place] if len(value) == 2 else None
        number = _whole(value, None)
        return self._frames_of(number) if key == "args.sampling_num_frames" and number is not None else number

    def _frames_of(self, latent_frames: int) -> int:
        """Frames for the reference's count, which includes the one that a temporal patch of 2 adds in front."""
        added = 1 if self._patch_t == 2 and latent_frames % 2 == 0 else 0
        return (latent_frames - added - 1) * self.time_factor + 1

    @property
    def time_factor(self) -> int:
        """Frames in a latent frame."""
        return _whole(self._settings.get(f"{NETWORK}.time_compressed_rate"), TIME_FACTOR)

    @property
    def _patch_t(self) -> int:
        patch = self._settings.get(f"{NETWORK}.patch_size")
        return _whole(patch[0], 1) if isinstance(patch, (list, tuple)) and patch else 1

    @property
    def _native(self) -> tuple[int, int, int, int] | None:
        levels = self._settings.get(f"{ENCODER}.ch_mult")
        factor = 2 ** (len(levels) - 1) if isinstance(levels, (list, tuple)) and levels else SPACE_FACTOR
        names = ("num_frames", "latent_height", "latent_width")
        frames, height, width = (_whole(self._settings.get(f"{NETWORK}.{name}"), None) for name in names)
        if frames is None or height is None or width is None:
            return None
        table = (frames, height * factor, width * factor)
        is_1_5 = self._patch_t == 2 and all(own >= least for own, least in zip(table, NATIVE_OF_1_5, strict=False))
        return NATIVE_OF_1_5 if is_1_5 else (*table, DEFAULT_FPS)


def _whole(value: Any, default: Any) -> Any:
    is_whole = isinstance(value, int) or isinstance(value, float) and value.is_integer()
    return int(value) if is_whole and not isinstance(value, bool) else default
