"""Every shipped model config trains and samples. Truths: the loss falls; a run leaves what it must (golden values).

Tiny sizes, 50 steps from scratch on the six clips of the quickstart, one evaluation that draws samples, a save, and a
clip drawn from that by sample_video.py. Adapters learn on frozen random weights whose gates are open (open_gates.py).
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

import av
import pytest
import torch
from PIL import Image

from tests.end_to_end.runs import CACHED, OPEN_GATES, ROOT
from tests.end_to_end.sampling_runs import sample
from tests.end_to_end.tiny import train_tiny, write

STEPS = 50
CLIP = (9, 16, 32)  # frames, height, width, as in tiny
MODELS = ("cogvideox_2b", "cogvideox_5b", "cogvideox_5b_i2v", "cogvideox1.5_5b", "cogvideox1.5_5b_i2v")
CONFIGS = [name + kind for name in MODELS for kind in ("", "_lora")]
SAME_FOR_ALL = {
    "args": {
        "mode": "pretrain",
        "load": None,
        "seed": 7,
        "train_iters": STEPS,
        "log_interval": 1,
        "eval_interval": STEPS,
        "eval_iters": 1,
        "strict_eval": False,
        "eval_batch_size": 2,
        "warmup": 0.0,
    },
    "model": {
        "sampler_config": {"params": {"num_steps": 2}},
        "network_config": {
            "params": {"time_embed_dim": 64, "modules": {"pos_embed_config": {"params": {"text_length": 48}}}}
        },
    },
    "deepspeed": {"train_micro_batch_size_per_gpu": 1},
}
OFS = {"model": {"network_config": {"params": {"ofs_embed_dim": 64}}}}  # as wide as the time's, which it is added to
FULL = {"deepspeed": {"optimizer": {"params": {"lr": 1e-3}}}}
ADAPTERS = {"modules": {"lora_config": {"params": {"r": 4, "lora_alpha": 4}}}}
LORA = {
    "model": {"network_config": {"params": ADAPTERS}},
    "deepspeed": {"optimizer": {"params": {"lr": 1e-2}}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_trains_evaluates_saves_and_samples(tmp_path: Path, name: str) -> None:
    """Adapters from a cache, as they are trained best."""
    is_lora = name.endswith("_lora")
    files = [ROOT / f"configs/{name}.yaml", ROOT / f"configs/{'sft1.5' if '1.5' in name else 'sft'}.yaml"]
    changes = [SAME_FOR_ALL, *([LORA, OPEN_GATES, CACHED] if is_lora else [FULL]), *[OFS] * ("1.5_5b_i2v" in name)]
    over = [write(tmp_path, f"change{place}", change) for place, change in enumerate(changes)]
    done = train_tiny(tmp_path, *map(str, files), *over, words=("--bf16", "--allow-target", "tests"))

    assert done.status == 0, done.output[-3000:]
    assert len(done.losses) == STEPS and all(map(math.isfinite, done.losses))
    assert mean(done.losses[-10:]) < mean(done.losses[:10])
    assert (done.folder / "latest").read_text() == str(STEPS)
    names = torch.load(done.checkpoint(STEPS), map_location="cpu", weights_only=True)["module"]
    assert names and all(torch.isfinite(tensor).all() for tensor in names.values())
    for key in ("inputs", "reconstructions", "samples"):
        videos = sorted((done.folder / "video" / f"{key}_gs-{STEPS:06d}").glob("*.mp4"))
        assert [shape_of(video) for video in videos] == [CLIP, CLIP], key

    Image.new("RGB", (96, 64), "red").save(tmp_path / "red.png")
    prompt = "a red car" + (f"@@{tmp_path}/red.png" if "i2v" in name else "")
    words = ("--run", str(done.folder), "--prompt", prompt, "--output-dir", str(tmp_path / "drawn"))
    status, output = sample(tmp_path / "sample.log", *words, "--allow-target", "tests")
    assert status == 0, output[-3000:]
    (drawn,) = (tmp_path / "drawn").glob("*/*.mp4")
    assert shape_of(drawn) == CLIP


def shape_of(video: Path) -> tuple[int, int, int]:
    """Frames, height and width of a file."""
    with av.open(str(video)) as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].height, frames[0].width
