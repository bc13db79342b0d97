"""convert_checkpoint.py for VAEs: SAT ↔ diffusers.

Truths checked: round trip (to the bit, every name), reference (diffusers' class loads the folder and computes the
same), golden messages.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from cogvideox.checkpoint.reading import read_state_dict
from tests.checkpoint.files import assert_equal, run_folder, write_training_config
from tests.tools.test_convert_checkpoint import convert, refused
from tests.vae.small import build, clip


@pytest.mark.parametrize("name", ["vae", "3d-vae.pt"])
def test_vae_there_and_back(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours = build((1, 2, 2, 1), blocks=1)
    torch.save({"state_dict": {**ours.state_dict(), "loss.logvar": torch.zeros(1)}}, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "diffusers", "--model", "1.5-5b-i2v")
    said = capsys.readouterr().out
    assert "left out: 1 of the VAE's own training loss" in said
    assert "multiplies the image's latents by 1.4286 (invert_scale_latents true)" in said
    assert "train with model.image_scale_factor=1.4286" in said
    theirs = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "diffusers", low_cpu_mem_usage=False).eval()
    assert (theirs.config.scaling_factor, theirs.config.invert_scale_latents) == (0.7, True)
    x = clip(9, batch=1)
    with torch.no_grad():
        latent = theirs.encode(x).latent_dist.mode()
        assert (latent - ours.posterior(x).mode()).abs().max() <= 1e-4
    convert(tmp_path / "diffusers", tmp_path / name)
    assert_equal(read_state_dict(tmp_path / name), ours.state_dict())


def test_the_vae_of_a_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference saves all networks in one file."""
    run_folder(tmp_path / "run", "5B")
    file = tmp_path / "run" / "1000" / "mp_rank_00_model_states.pt"
    assert "holds no VAE" in refused(capsys, file.parent, tmp_path / "out", "--part", "vae")
    vae = build().state_dict()
    module = torch.load(file)["module"] | {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}
    torch.save({"module": module}, file)
    write_training_config(tmp_path / "run", "5B", scale_factor=0.5)
    convert(tmp_path / "run", tmp_path / "3d-vae.pt", "--part", "vae", "--to", "sat")
    assert_equal(read_state_dict(tmp_path / "3d-vae.pt"), vae)
    convert(tmp_path / "run", tmp_path / "vae", "--part", "vae")
    theirs = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
    assert theirs.config.scaling_factor == 0.5
    convert(tmp_path / "run", tmp_path / "transformer")
    assert read_state_dict(tmp_path / "transformer").keys().isdisjoint(theirs.state_dict())


def test_a_vae_takes_its_scale_from_a_training_config(tmp_path: Path) -> None:
    torch.save({"state_dict": build().state_dict()}, tmp_path / "3d-vae.pt")
    config = write_training_config(tmp_path, "5B", scale_factor=0.5)
    convert(tmp_path / "3d-vae.pt", tmp_path / "diffusers", "--base", config)
    written = json.loads((tmp_path / "diffusers" / "config.json").read_text())
    assert (written["scaling_factor"], written["invert_scale_latents"]) == (0.5, False)


def test_vae_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = build().state_dict()
    torch.save({"state_dict": state}, tmp_path / "good.pt")
    assert "say whose it is (--model 2b, 5b" in refused(capsys, tmp_path / "good.pt", tmp_path / "out")
    del state["decoder.mid.block_1.conv1.conv.bias"]
    torch.save({"state_dict": state}, tmp_path / "bad.pt")
    message = refused(capsys, tmp_path / "bad.pt", tmp_path / "out", "--model", "5b")
    assert "1 missing: decoder.mid.block_1.conv1.conv.bias" in message
    assert not (tmp_path / "out").exists()
