"""Weights may come from anybody. Truth: round trip (SAT's and DeepSpeed's own files are read), and golden refusals."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cogvideox.checkpoint.choosing import choose_checkpoint
from cogvideox.checkpoint.loading import checkpoint_folder, read_starting_weights
from cogvideox.checkpoint.pointers import read_latest, read_shards
from cogvideox.checkpoint.reading import read_state_dict
from cogvideox.checkpoint.safe_loading import Unread, load_safely
from cogvideox.conditioning.t5 import FrozenT5Embedder, load_encoder
from cogvideox.conditioning.t5_files import find_t5
from cogvideox.errors import UserError

ASSETS = Path(__file__).resolve().parents[1] / "assets/quickstart"
WEIGHTS = {"a": torch.arange(6.0)}


class Evil:
    """Unpickled, it would leave a file in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_sat() -> dict[str, Any]:
    """What SAT's `save_ds_checkpoint` puts into a model file, and numbers as a scheduler may have them."""
    return {
        "module": WEIGHTS,
        "iteration": 3,
        "client_lr_scheduler": {"start_lr": np.float64(1e-4), "num_iters": np.int64(7), "decay_style": "cosine"},
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }


@pytest.mark.parametrize("is_zip", [True, False])
def test_sat_s_own_files_with_random_states_are_read(here: Path, is_zip: bool) -> None:
    path = here / "1/mp_rank_00_model_states.pt"
    path.parent.mkdir()
    torch.save(of_sat(), path, _use_new_zipfile_serialization=is_zip)
    (here / "latest").write_text("1")
    found = read_starting_weights(here)
    assert found.iteration == 1 and torch.equal(found.state_dict["a"], WEIGHTS["a"])
    content = load_safely(str(path), map_location="cpu")
    assert content["iteration"] == 3 and content["random_rng_state"] == of_sat()["random_rng_state"]
    assert isinstance(content["np_rng_state"][1], Unread) and content["np_rng_state"][0] == "MT19937"


def test_files_of_numpy_1_are_read_too(here: Path) -> None:
    """Its module had another name, which numpy 2 no longer writes: put in by hand."""
    torch.save(of_sat(), here / "new.pt")
    with zipfile.ZipFile(here / "new.pt") as new, zipfile.ZipFile(here / "old.pt", "w") as old:
        for record in new.infolist():
            content = new.read(record)
            if record.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(record, content)
    assert torch.equal(read_state_dict(here / "old.pt")["a"], WEIGHTS["a"])


def test_what_deepspeed_pickles_is_read(here: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    scaler = DynamicLossScaler(2.0, 1000, 1.0, 2, False)
    torch.save({"module": WEIGHTS, "loss_scaler": scaler, "piece": fragment_address(3, 4)}, here / "a.pt")
    content = load_safely(here / "a.pt", mmap=True)
    assert content["loss_scaler"].cur_scale == 2.0 and content["piece"].start == 4
    assert torch.equal(read_state_dict(here / "a.pt")["a"], WEIGHTS["a"])


def evil_t5(here: Path) -> None:
    shutil.copytree(ASSETS / "t5", here / "t5")
    for file in (here / "t5").glob("model*.safetensors*"):
        file.unlink()
    torch.save({"shared.weight": Evil()}, here / "t5/pytorch_model.bin")
    FrozenT5Embedder(str(here / "t5"))


def evil_averages(here: Path) -> None:
    torch.save({"module": WEIGHTS}, here / "mp_rank_00_model_states.pt")
    torch.save({"module": Evil()}, here / "mp_rank_00_ema_states.pt")
    read_starting_weights(here, ema=True)


def evil_vae(here: Path) -> None:
    from cogvideox.vae.autoencoder import read_state_dict as read

    torch.save({"state_dict": Evil()}, here / "3d-vae.ckpt")
    read(here / "3d-vae.ckpt")


def evil_resume(here: Path) -> None:
    torch.save({"optimizer_state_dict": Evil()}, here / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    load_safely(str(here / "zero_pp_rank_0_mp_rank_00_optim_states.pt"))


@pytest.mark.parametrize("load", [evil_t5, evil_averages, evil_vae, evil_resume])
def test_every_reader_names_the_file_and_how_to_convert_it(here: Path, load: Any) -> None:
    with pytest.raises(UserError) as caught:
        load(here)
    said = str(caught.value)
    assert "refused, because reading it would run code" in said and "asks for posix.system" in said
    assert ".plain.pt" in said and not (here / "evil").exists()


def test_the_command_that_converts_does_it_and_can_be_copied_whatever_the_name(here: Path) -> None:
    """Old files have their arguments in them, an argparse.Namespace."""
    path = here / "$(touch evil) `touch evil` \"'.pt"
    torch.save({"module": WEIGHTS, "args": argparse.Namespace(lr=1e-4)}, path)
    with pytest.raises(UserError, match="asks for argparse.Namespace") as caught:
        read_state_dict(path)
    subprocess.run(["bash", "-c", str(caught.value).splitlines()[-1]], check=True, capture_output=True)
    assert torch.equal(read_state_dict(path.with_suffix(".plain.pt"))["a"], WEIGHTS["a"])
    assert not (here / "evil").exists()


def test_archives_that_unpack_to_more_than_they_are(here: Path) -> None:
    torch.save({"module": WEIGHTS}, here / "good.pt")
    with zipfile.ZipFile(here / "good.pt") as good, zipfile.ZipFile(here / "bomb.pt", "w") as bomb:
        for record in good.infolist():
            content = bytes(50_000_000) if record.filename.endswith("data.pkl") else good.read(record)
            bomb.writestr(record.filename, content, zipfile.ZIP_DEFLATED)
    assert (here / "bomb.pt").stat().st_size < 100_000
    for read in (read_state_dict, load_safely):
        with pytest.raises(UserError, match="bomb.pt is compressed, so that it may unpack to any size: save it with"):
            read(here / "bomb.pt")
    lie = bytearray((here / "good.pt").read_bytes())
    entry = lie.index(b"PK\x01\x02")
    lie[entry + 20 : entry + 28] = (10**9).to_bytes(4, "little") * 2
    (here / "lie.pt").write_bytes(lie)
    with pytest.raises(UserError, match=r"lie.pt would unpack to 1,\d+,\d+,\d+ bytes and has"):
        load_safely(here / "lie.pt")


def test_a_safetensors_header_of_two_gigabytes(here: Path) -> None:
    with (here / "a.safetensors").open("wb") as file:
        file.write((2 * 10**9).to_bytes(8, "little") + b"{")
        file.truncate(2 * 10**9 + 8)
    began = time.monotonic()
    with pytest.raises(UserError, match="a.safetensors: not a readable safetensors file .*header too large"):
        read_state_dict(here / "a.safetensors")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "..", ".", "", "a/b", "1\n2", "1\x00"])
def test_latest_names_a_folder_beside_it(here: Path, name: str) -> None:
    (here / "run").mkdir()
    for folder in ("elsewhere", "run/a/b"):
        (here / folder).mkdir(parents=True)
        torch.save({"module": WEIGHTS}, here / folder / "mp_rank_00_model_states.pt")
    (here / "run/latest").write_text(name)
    readers: tuple[Any, ...] = (checkpoint_folder, choose_checkpoint, read_starting_weights, read_state_dict)
    for read in readers:
        with pytest.raises(UserError, match="latest (names|is empty)"):
            read(here / "run")
    (here / "run/latest").write_bytes(b"1" * 10**6)
    assert len(read_latest(here / "run/latest")) == 1000


@pytest.mark.parametrize("name", ["../up.safetensors", "/etc/up.safetensors", "a/../../up.safetensors"])
def test_an_index_names_shards_below_it(here: Path, name: str) -> None:
    (here / "model").mkdir()
    save_file(WEIGHTS, here / "up.safetensors")
    index = here / "model/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="index.json names .* which does not lie below its folder"):
        read_state_dict(here / "model")
    index.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not an index of weight shards"):
        read_shards(index)
    index.write_text(json.dumps({"weight_map": {"a": 1}}))
    with pytest.raises(UserError, match="not an index of weight shards"):
        read_shards(index)


def test_a_text_encoder_names_no_kernel_to_fetch(here: Path) -> None:
    shutil.copytree(ASSETS / "t5", here / "t5")
    config = json.loads((here / "t5/config.json").read_text())
    (here / "t5/config.json").write_text(json.dumps(config | {"attn_implementation": "evil/kernel"}))
    with pytest.raises(UserError, match="'evil/kernel', which would be fetched and run"):
        load_encoder(find_t5(str(here / "t5")), None)
