"""Old config files at their real sizes. Truths: the reference's 23 target paths, its keys, its numbers (reference)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from arguments import get_args
from cogvideox.config import ALIASES
from tests.config.conftest import T5, VAE
from tests.config.old_configs import OLD_MODELS, old_model, old_task, targets

Read = Callable[..., argparse.Namespace]


@pytest.fixture
def read(place: Path) -> Read:
    """`get_args` on an old model and its task; only paths of weights and data are replaced."""

    def call(name: str, *words: str) -> argparse.Namespace:
        for file, tree in (("model", old_model(name)), ("task", old_task(name))):
            (place / f"{file}.yaml").write_text(yaml.safe_dump(tree))
        paths = [f"{VAE}={place}/3d-vae.pt", f"{T5}={place}/t5", "--load", f"{place}/weights", "--save", str(place)]
        paths += ["--train-data", f"{place}/clips", "--valid-data", f"{place}/clips"]
        return get_args(["--base", f"{place}/model.yaml", f"{place}/task.yaml", *paths, *words])

    return call


def test_the_old_files_name_every_target_of_the_reference() -> None:
    named = set().union(*(targets(tree) for name in OLD_MODELS for tree in (old_model(name), old_task(name))))
    assert named == {*ALIASES, "torch.nn.Identity", "data_video.SFTDataset"}


@pytest.mark.parametrize("name", OLD_MODELS)
def test_an_old_config_is_accepted_as_it_is(read: Read, name: str) -> None:
    args = read(name)
    assert args.bf16 and not args.fp16 and args.mode == "finetune" and args.force_train
    assert args.deepspeed_config["optimizer"]["type"] == "sat.ops.FusedEmaAdam"
    model = args.model_config
    for key in ("network_config", "conditioner_config", "first_stage_config"):
        assert model[key]["params"].keys() == old_model(name)["model"][key]["params"].keys()
    assert model["network_config"]["params"]["hidden_size"] == (1920 if name.startswith("2b") else 3072)
    told = "\n".join(args.config_notes)
    for key in ("weighting_config", "adm_in_channels", "vocab_size", "max_sequence_length", "loss_scale_window"):
        assert told.count(key) == 1, key
    for key in ("resolution", "attn_resolutions"):
        assert told.count(f".{key} ") == 2, key
    assert "no_load_rng" in told


def test_latent_input_beside_clips_is_taken_back_and_said(read: Read) -> None:
    args = read("1.5_5b")
    assert args.model_config["latent_input"] is False
    assert any(note.startswith("model.latent_input has no effect") for note in args.config_notes)
    assert args.merged_config["model"]["latent_input"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model.lora_train=true", "model.use_pd=true"), ("model.lora_train", "model.use_pd")),
        (("model.noised_image_all_concat=true",), ("model.noised_image_all_concat",)),
        (("model.image_scale_factor=1",), ("model.image_scale_factor",)),
        (("model.noised_image_dropout=0.1",), ()),
    ],
)
def test_keys_that_do_nothing_are_accepted_and_said(read: Read, words: tuple[str, ...], said: tuple[str, ...]) -> None:
    notes = read("5b", *words).config_notes
    given = [word.partition("=")[0] for word in words]
    assert [key for key in given if any(note.startswith(f"{key} has no effect") for note in notes)] == list(said)


def test_nothing_is_said_of_image_keys_where_there_is_a_picture(read: Read) -> None:
    args = read("1.5_5b_i2v", "model.noised_image_all_concat=true", "model.image_scale_factor=1")
    assert not any(note.startswith(("model.noised", "model.image")) for note in args.config_notes)
    model: dict[str, Any] = args.model_config
    assert model["noised_image_input"] is True and model["image_scale_factor"] == 1
