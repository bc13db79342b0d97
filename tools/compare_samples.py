# F frames, C channels, H W
"""Do a run's last samples show the clips that their captions name?

    python tools/compare_samples.py runs/quickstart/quickstart-… [--picture samples.png]

For each caption of the last evaluation: the training clip nearest to the sample by PSNR, which should be the caption's
own. Then the mean PSNR, and the training loss at the start and at the end. Exit status 0 if every caption matches, the
mean PSNR is at least --min-psnr and the loss of the last tenth is at most half of the first tenth's; 1 if not; 2 where
something needed is missing.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from torch import Tensor  # noqa: E402

from cogvideox.config.bounds import safe_yaml  # noqa: E402
from cogvideox.data.looking import usable_span  # noqa: E402
from cogvideox.data.reading import UnreadableVideo, read_frames  # noqa: E402
from cogvideox.data.scaling import to_clip  # noqa: E402
from cogvideox.data.writing import to_uint8_frames  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402
from cogvideox.telemetry.metrics_file import read_metrics  # noqa: E402
from cogvideox.telemetry.samples import last_samples  # noqa: E402
from data_video import SFTDataset  # noqa: E402

DATA_TARGET = "data_video.SFTDataset"


@dataclass(frozen=True)
class TrainingClip:
    """What training saw: the clip (F, 3, H, W) in [-1, 1], its caption, and the name of its file."""

    name: str
    caption: str
    clip: Tensor


@dataclass(frozen=True)
class Comparison:
    """One sample against all clips. PSNR in dB; `psnr_own` is None where no clip has the sample's caption."""

    caption: str
    sample: Tensor
    nearest: TrainingClip
    own: TrainingClip | None
    psnr_own: float | None
    psnr_next: float | None

    @property
    def is_match(self) -> bool:
        """The nearest clip has the sample's caption."""
        return one_line(self.nearest.caption) == self.caption


@dataclass(frozen=True)
class Verdict:
    """The numbers that decide. Losses are means over a tenth of the logged training iterations."""

    matches: int
    captions: int
    mean_psnr: float
    first_loss: float
    last_loss: float

    def passes(self, min_psnr: float) -> bool:
        """All match, the samples are near enough, and the loss has halved (a loss that is not finite has not)."""
        is_halved = self.last_loss <= self.first_loss / 2
        return self.matches == self.captions and self.mean_psnr >= min_psnr and is_halved


def one_line(caption: str) -> str:
    """A caption as `video_texts` keeps it."""
    return " ".join(caption.split())


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio in dB of two clips in [-1, 1] (peak 2)."""
    mean_square = (a.double() - b.double()).square().mean().item()
    return math.inf if mean_square == 0 else 10 * math.log10(4 / mean_square)


def read_config(run: Path) -> dict[str, Any]:
    """The run's merged config, as run."""
    path = run / "training_config.yaml"
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a run's folder, <save>/<experiment_name>-MM-DD-HH-MM")
    try:
        config = safe_yaml(path)
        target = config["data"]["target"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no config of a run ({error!r}): put back the file that the run wrote") from error
    if target != DATA_TARGET:
        raise UserError(f"the run's data.target is {target}; only {DATA_TARGET} can be compared with")
    return config


def training_clips(config: Mapping[str, Any], folders: Sequence[str]) -> list[TrainingClip]:
    """Every clip of the folders, prepared as in the run."""
    clips = []
    for folder in folders:
        dataset = SFTDataset(data_dir=folder, **config["data"]["params"])
        for index, entry in enumerate(dataset.clips):
            clips.append(TrainingClip(entry.video.stem, entry.caption, dataset[index]["mp4"]))
    return clips


def read_sample(path: Path, like: Tensor, fps: int) -> Tensor:
    """A sample's mp4 as a clip (F, 3, H, W) in [-1, 1] of the shape of `like`, cropped in time to what both have."""
    try:
        span = usable_span(path, 0)
        frame_count = min(span.frame_count(fps), len(like))
        height, width = like.shape[2:]
        return to_clip(read_frames(path, span.start_s, fps, frame_count, (height, width)), frame_count)
    except UnreadableVideo as error:
        raise UserError(f"the sample {path} {error}") from error


def compare(caption: str, sample: Tensor, clips: Sequence[TrainingClip]) -> Comparison:
    """`sample` against every clip, over the sample's frames. Several clips may share a caption: the nearest counts."""
    scored = [(psnr(sample, each.clip[: len(sample)]), each) for each in clips]
    own = [pair for pair in scored if one_line(pair[1].caption) == caption]
    others = [value for value, each in scored if one_line(each.caption) != caption]
    best_own = max(own, key=lambda pair: pair[0], default=(None, None))
    nearest = max(scored, key=lambda pair: pair[0])[1]
    return Comparison(caption, sample, nearest, best_own[1], best_own[0], max(others, default=None))


def compare_run(run: Path, folders: Sequence[str]) -> list[Comparison]:
    """Every sample of the run's last evaluation against the clips of the folders (none given: the run's own)."""
    config = read_config(run)
    found = last_samples(run)
    if found is None or "samples" not in found.kinds:
        raise UserError(
            f"{run}/video holds no samples_gs-<iteration>/*.mp4: set eval_interval and eval_iters, run again"
        )
    clips = training_clips(config, folders or config["args"]["train_data"])
    fps = config["data"]["params"]["fps"]
    comparisons = []
    for caption, paths in found.rows:
        if caption is None:
            raise UserError(
                f"{run}/video_texts/{found.iteration:08d} has fewer lines than there are samples: "
                "run the evaluation again"
            )
        if "samples" in paths:
            comparisons.append(compare(caption, read_sample(run / paths["samples"], clips[0].clip, fps), clips))
    return comparisons


def loss_ends(run: Path) -> tuple[float, float]:
    """Mean training loss of the first and of the last tenth of the logged iterations."""
    path = run / "metrics.jsonl"
    lines = read_metrics(path) if path.is_file() else []
    logged = [line["loss"] for line in lines if "loss" in line and "split" not in line]
    losses = [math.nan if loss is None else float(loss) for loss in logged]
    if not losses:
        raise UserError(
            f"{path} holds no training loss: the run has logged no iteration (args.log_interval): train longer"
        )
    tenth = max(1, len(losses) // 10)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


def judge(comparisons: Sequence[Comparison], losses: tuple[float, float]) -> Verdict:
    """The numbers that decide; a caption without a clip of its own has a PSNR of 0 dB."""
    values = [each.psnr_own or 0.0 for each in comparisons]
    matches = sum(each.is_match for each in comparisons)
    return Verdict(matches, len(comparisons), sum(values) / len(values), *losses)


def table(comparisons: Sequence[Comparison]) -> str:
    """A line a caption, aligned."""
    rows = [("caption", "nearest clip", "PSNR own", "next best", "match")]
    for each in comparisons:
        caption = each.caption if len(each.caption) <= 60 else each.caption[:59] + "…"
        numbers = ["–" if value is None else f"{value:.2f}" for value in (each.psnr_own, each.psnr_next)]
        rows.append((caption, each.nearest.name, numbers[0], numbers[1], "yes" if each.is_match else "no"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def draw_picture(path: Path, comparisons: Sequence[Comparison], frames_shown: int = 4, scale: int = 2) -> None:
    """A contact sheet: under each caption its clip on the left and the sample on the right, at the same moments."""
    height, width = (scale * side for side in comparisons[0].sample.shape[2:])
    gap, text_height = 12, 26
    half = frames_shown * width
    sheet = Image.new(
        "RGB", (2 * half + 3 * gap, text_height + len(comparisons) * (height + text_height + gap)), "white"
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for column, title in enumerate(("training clip", "sample from the caption alone")):
        pen.text((gap + column * (half + gap), 4), title, fill="gray", font=font)
    for row, each in enumerate(comparisons):
        top = text_height + row * (height + text_height + gap)
        pen.text((gap, top), each.caption, fill="black", font=font)
        clips = [each.own.clip if each.own else torch.full_like(each.sample, 1.0), each.sample]
        for column, clip in enumerate(clips):
            moments = torch.linspace(0, len(each.sample) - 1, frames_shown).round().long()
            for place, frame in enumerate(to_uint8_frames(clip[moments])):
                picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
                sheet.paste(picture, (gap + column * (half + gap) + place * width, top + text_height))
    sheet.save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the verdict; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--data", action="append", default=[], help="data folder (default: the run's args.train_data)")
    parser.add_argument("--min-psnr", type=float, default=18.0, help="mean PSNR in dB that is enough (default: 18)")
    parser.add_argument("--picture", type=Path, help="also draw samples beside their clips into this PNG file")
    options = parser.parse_args(arguments)
    try:
        comparisons = compare_run(options.run, options.data)
        verdict = judge(comparisons, loss_ends(options.run))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.picture:
        draw_picture(options.picture, comparisons)
    print(table(comparisons))
    print(f"\nmatching captions  {verdict.matches} of {verdict.captions}")
    print(f"mean PSNR          {verdict.mean_psnr:.2f} dB (wanted: at least {options.min_psnr:g})")
    losses = f"{verdict.first_loss:.4f} → {verdict.last_loss:.4f}"
    print(f"train loss         {losses}, ratio {verdict.last_loss / verdict.first_loss:.3f} (wanted: at most 0.5)")
    is_good = verdict.passes(options.min_psnr)
    print("passed" if is_good else "NOT passed")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
