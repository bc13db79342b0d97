"""Numbers of a model that do not go together. Truth: each is one error that names key, place and remedy (golden)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from arguments import get_args
from cogvideox.config import allowed_modules
from cogvideox.errors import UserError
from tests.config.conftest import ROOT, T5, VAE

Shipped = Callable[..., argparse.Namespace]
NETWORK = "model.network_config.params"
POSITIONS = f"{NETWORK}.modules.pos_embed_config.params"
LOSS = "model.loss_fn_config.params"
I2V, I2V_1_5 = "cogvideox_5b_i2v", "cogvideox1.5_5b_i2v"


@pytest.fixture
def shipped(place: Path) -> Shipped:
    """`get_args` on a shipped model and its task, with `place` for weights and data."""

    def call(model: str, *words: str) -> argparse.Namespace:
        task = "sft1.5" if "1.5" in model else "sft"
        files = [str(ROOT / f"configs/{name}.yaml") for name in (model, task)]
        paths = [f"{VAE}={place}/3d-vae.pt", f"{T5}={place}/t5", "--load", f"{place}/weights", "--save", str(place)]
        return get_args(["--base", *files, *paths, "--bf16", "--train-data", f"{place}/clips", *words])

    return call


FAULTS = [
    (I2V, f"{NETWORK}.in_channels=16", ["16 of the latent and 16 of the picture's", "use 32", "cogvideox_5b_i2v.yaml"]),
    ("cogvideox_5b", f"{NETWORK}.in_channels=32", ["latents have 16 channels", "use 16", "noised_image_input: true"]),
    ("cogvideox_5b", "model.noised_image_input=true", [f"{NETWORK}.in_channels: 16", "use 32"]),
    ("cogvideox_5b", f"{NETWORK}.out_channels=8", ["8", "latents have 16", "use 16"]),
    (I2V, "model.noised_image_dropout=1.5", ["is 1.5", "0 to 1"]),
    (I2V, "data.params.max_num_frames=81", ["go up to 49", "num_frames 49", "use at most 49", "interpolate=true"]),
    ("cogvideox_5b", "data.params.max_num_frames=81", ["at most 49", "raise it to 81", "parts/cogvideox.yaml:"]),
    ("cogvideox1.5_5b", "data.params.max_num_frames=161", ["go up to 85", "num_frames 81", "raise it to 161"]),
    ("cogvideox_2b", "data.params.max_num_frames=48", ["48 is not 4k + 1", "use 45 or 49"]),
    ("cogvideox_2b", "data.params.video_size=[480, 1360]", ["[480, 720] pixels", "latent_width 90", "60 and 170"]),
    ("cogvideox_2b", "data.params.buckets=[[49,480,720],[49,720,480]]", ["buckets.1", "[720, 480] is beyond", "720]"]),
    ("cogvideox_2b", "data.params.buckets=[[48,480,720]]", ["buckets.0", "48 is not 4k + 1", "use 45 or 49"]),
    ("cogvideox1.5_5b", "data.params.video_size=[760, 1360]", ["not divisible by 16", "use [768, 1360]"]),
    (I2V_1_5, f"{NETWORK}.ofs_embed_dim=256", ["256", "time_embed_dim 512", "use 512"]),
    ("cogvideox1.5_5b", f"{NETWORK}.ofs=2", ["without ofs_embed_dim", "remove it"]),
    (I2V, f"{T5.replace('model_dir', 'max_length')}=100", ["100 text tokens", "text_length is 226", "make them equal"]),
    ("cogvideox_5b", f"{NETWORK}.num_attention_heads=49", ["3072 is not divisible by num_attention_heads 49"]),
    ("cogvideox_5b", f"{POSITIONS}.hidden_size_head=32", ["32", "hidden_size / num_attention_heads", "use 64"]),
    ("cogvideox_5b", "model.not_trainable_prefixes=[all]", ["nothing to train", "configs/lora.yaml"]),
    ("cogvideox_5b", "model.sampler_config=null", ["evaluations draw samples", "args.eval_interval=null"]),
    ("cogvideox_5b", "model.en_and_decode_n_samples_a_time=0", ["is 0", "at least 1"]),
    ("cogvideox_5b", f"{LOSS}.fixed_frames=-1", ["is -1", "at least 0"]),
]


@pytest.mark.parametrize(("model", "word", "parts"), FAULTS)
def test_one_error_with_the_key_and_the_remedy(shipped: Shipped, model: str, word: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        shipped(model, word)
    text = str(caught.value)
    assert text.startswith("1 problem with the configuration:"), text
    for part in parts:
        assert part in text, text


def test_sizes_beyond_the_positions_are_accepted_where_the_config_asks_to_interpolate(shipped: Shipped) -> None:
    larger = ("data.params.max_num_frames=81", "data.params.video_size=[768, 1360]")
    args = shipped(I2V, *larger, f"{POSITIONS}.interpolate=true")
    assert args.data_config["params"]["max_num_frames"] == 81


def test_any_multiple_of_16_and_any_4k_plus_1_within_the_positions_is_accepted(shipped: Shipped) -> None:
    for frames in range(1, 50, 4):
        assert shipped("cogvideox_2b", f"data.params.max_num_frames={frames}", "data.params.video_size=[16, 720]")
    for frames in (5, 9, 81, 85):
        assert shipped("cogvideox1.5_5b", f"data.params.max_num_frames={frames}", "data.params.video_size=[2400, 16]")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's, with a data set and a network."""
    text = "class Latents:\n    def __init__(self, path): ...\n\nclass Network:\n    def __init__(self, **given): ...\n"
    (tmp_path / "my_parts.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(allowed_modules, "names", [])
    return "my_parts"


def test_latents_without_pixels_do_not_go_with_a_picture(shipped: Shipped, own_module: str) -> None:
    words = (f"data={{target: {own_module}.Latents, params: null}}", "--allow-target", own_module)
    words += ("model.latent_input=true",)
    assert shipped("cogvideox_5b", *words).model_config["latent_input"] is True
    with pytest.raises(UserError, match="encodes the first frame: it needs pixels"):
        shipped(I2V, *words)


def test_a_network_of_the_users_own_is_not_judged_by_our_sizes(shipped: Shipped, own_module: str) -> None:
    words = (f"model.network_config.target={own_module}.Network", f"{NETWORK}.in_channels=7")
    assert shipped("cogvideox_5b", *words, "--allow-target", own_module)
