"""Every shipped model config trains. Truth: the loss falls, and what a run must leave is there.

Tiny sizes, 50 steps from scratch on the six clips of the quickstart, with one evaluation that draws samples, and a
save. Adapters learn on frozen random weights whose gates are open (see open_gates).
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

import pytest
import torch

from cogvideox.data.reading import usable_span
from tests.end_to_end.runs import OPEN_GATES, ROOT
from tests.end_to_end.tiny import train_tiny, write

STEPS = 50
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
        "eval_batch_size": 2,
        "warmup": 0.0,
    },
    "model": {"sampler_config": {"params": {"num_steps": 2}}},
    "deepspeed": {"train_micro_batch_size_per_gpu": 2},
}
FULL = {"deepspeed": {"optimizer": {"params": {"lr": 1e-3}}}}
ADAPTERS = {"modules": {"lora_config": {"params": {"r": 4, "lora_alpha": 4}}}}
LORA = {
    "model": {"network_config": {"params": ADAPTERS}},
    "deepspeed": {"optimizer": {"params": {"lr": 1e-2}}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_trains_evaluates_and_saves(tmp_path: Path, name: str) -> None:
    is_lora = name.endswith("_lora")
    files = [ROOT / f"configs/{name}.yaml", ROOT / f"configs/{'sft1.5' if '1.5' in name else 'sft'}.yaml"]
    changes = [SAME_FOR_ALL, *([LORA, OPEN_GATES] if is_lora else [FULL])]
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
        assert len(videos) == 2, key
        assert [usable_span(video, 0).frame_count(16 if "1.5" in name else 8) for video in videos] == [9, 9], key
