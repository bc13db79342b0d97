"""The trained VAE in assets/quickstart.

Truth checked: golden values (what vae.json says of it), and that the shipped config names what is there.
"""

from __future__ import annotations

import json

import pytest
import torch

from tools import quickstart_vae

FILE = quickstart_vae.VAE_FOLDER / "3d-vae.pt"


@pytest.fixture(scope="module")
def facts() -> dict[str, float]:
    return json.loads((quickstart_vae.VAE_FOLDER / "vae.json").read_text(encoding="utf-8"))


def test_reconstructs_the_clips_as_well_as_it_says(facts):
    autoencoder = quickstart_vae.build_autoencoder()
    autoencoder.load_weights(FILE)
    found = quickstart_vae.judge(autoencoder, quickstart_vae.first_clips(quickstart_vae.read_clip_videos()))
    assert found["psnr_db"] == pytest.approx(facts["psnr_db"], abs=0.1)
    assert found["scale_factor"] == pytest.approx(facts["scale_factor"], rel=0.01)
    assert found["psnr_db"] >= PSNR_DB


PSNR_DB = 22.0


def test_small_and_plain(facts):
    assert FILE.stat().st_size < 5 * 2**20
    state = torch.load(FILE, weights_only=True)["state_dict"]
    assert all(tensor.dtype == torch.float16 for tensor in state.values())


def test_readme_states_the_scale_factor(facts):
    text = (quickstart_vae.VAE_FOLDER / "README.md").read_text(encoding="utf-8")
    stated = float(text.split("scale_factor: ")[1].split()[0])
    assert stated == pytest.approx(facts["scale_factor"], rel=0.005)
