"""latent_cache.py without its encoders. Each test says which truth it checks."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import latent_cache
from cogvideox.data.cache_keys import DigestMemo
from cogvideox.data.cache_store import CacheStore
from cogvideox.data.reading import UnreadableVideo
from cogvideox.errors import UserError
from data_video import SFTDataset
from latent_cache import encoders_of

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "quickstart"
STATE = "mp_rank_00_model_states.pt"


def config_of(vae: Path, text: Path = ASSETS / "t5") -> dict[str, Any]:
    embedder = {"target": "T5", "input_key": "txt", "params": {"model_dir": str(text), "max_length": 16}}
    return {
        "first_stage_config": {"target": "VAE", "params": {"ckpt_path": str(vae), "z": 4}},
        "conditioner_config": {"params": {"emb_models": [embedder]}},
    }


def sat_run(folder: Path) -> Path:
    (folder / "20").mkdir(parents=True)
    (folder / "latest").write_text("20\n")
    (folder / "20" / STATE).write_bytes(b"weights")
    (folder / "training_config.yaml").write_text("args: {}")
    return folder / "20" / STATE


def diffusers_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return folder / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("write", [sat_run, diffusers_folder])
def test_a_vae_is_known_by_its_file_however_it_is_named(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Identity: a folder, the file in it and a copy elsewhere; invariant: a byte of the file counts, its folder's other
    files do not.
    """
    memo = DigestMemo(tmp_path / "cache")
    file = write(tmp_path / "vae")
    copy = Path(shutil.copytree(tmp_path / "vae", tmp_path / "elsewhere"))

    def encoders(vae: Path) -> Any:
        return encoders_of(config_of(vae), memo, torch.float32)

    before = encoders(file)
    assert encoders(tmp_path / "vae") == encoders(copy) == before
    (tmp_path / "vae" / "log.txt").write_text("another run")
    assert encoders(tmp_path / "vae") == before
    file.write_bytes(b"weightz")
    after = encoders(file)
    assert after.vae != before.vae and after.text == before.text
    assert encoders(tmp_path / "vae") == after and encoders(copy) == before


def test_precision_is_taken_from_the_config(tmp_path: Path) -> None:
    """Golden values."""
    config, memo = config_of(diffusers_folder(tmp_path / "vae")), DigestMemo(tmp_path / "cache")
    found = encoders_of(config, memo, torch.bfloat16)
    assert (found.dtype, found.autocasts, found.max_length, found.image_noises) == ("torch.bfloat16", True, 16, 0)
    assert not encoders_of(config | {"disable_first_stage_autocast": True}, memo, torch.bfloat16).autocasts


def test_what_need_not_be_loaded_is_named_with_its_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden values; invariant: nothing is built where all is there."""
    (tmp_path / "vae.pt").write_bytes(bytes(3_200_000))
    text = shutil.copytree(ASSETS / "t5", tmp_path / "t5")
    with (text / "model.safetensors").open("ab") as file:
        file.truncate(1_400_000_000)  # takes no room
    monkeypatch.setattr(latent_cache, "folder_digest", lambda files, memo: "f" * 32)
    monkeypatch.setattr(latent_cache, "built", lambda *given: pytest.fail("an encoder is built"))
    args = argparse.Namespace(cache=str(tmp_path / "cache"), cache_variants=2, num_workers=0, quarantine=None)
    args.model_config = config_of(tmp_path / "vae.pt", Path(text))
    params = {"video_size": (32, 48), "fps": 8, "max_num_frames": 5, "window": "random"}
    base = SFTDataset(str(ASSETS / "clips"), **params)
    create = latent_cache.cached(lambda path, args: base, torch.float32)
    with monkeypatch.context() as filling:
        filling.setattr(latent_cache, "fill", lambda *given: None)
        clips: Any = create("clips", args)
    store = CacheStore(tmp_path / "cache")
    for key in {each.key for each in clips.wanted()} | clips.captions().keys():
        store.put(key, {"moments": torch.zeros(1)})
    store.flush()
    with caplog.at_level(logging.INFO):
        create("clips", args)
    (line,) = [record.message for record in caplog.records if "are there" in record.message]
    assert line == (
        f"{tmp_path / 'cache'}: all 6 clips and 6 captions are there; "
        "the VAE (3.2 MB of weights) and the text encoder (1.4 GB) are not loaded for them"
    )


@contextmanager
def stand_in(node: dict[str, Any], dtype: torch.dtype) -> Iterator[Any]:
    """For both encoders: a posterior of the clip's own values, an embedding of the caption's length."""
    if node["target"] == "VAE":
        yield SimpleNamespace(posterior=lambda x: SimpleNamespace(mean=x, logvar=-x))
    else:
        yield lambda texts: [torch.full((1, 1), float(len(text))) for text in texts]


def created(folder: Path, base: SFTDataset, workers: int) -> Any:
    args = argparse.Namespace(cache=str(folder / "cache"), cache_variants=1, num_workers=workers, quarantine=None)
    args.model_config = config_of(ASSETS / "vae" / "3d-vae.pt")
    return latent_cache.cached(lambda path, args: base, torch.float32)("clips", args)


def test_what_does_not_decode_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden values: all entries but that of one clip, whose every read fails."""
    monkeypatch.setattr(latent_cache, "built", stand_in)
    base = SFTDataset(str(ASSETS / "clips"), (32, 48), fps=8, max_num_frames=5)
    read = base.read

    def failing(index: int, choices: Any) -> Any:
        if index == 2:
            raise UnreadableVideo("is damaged")
        return read(index, choices)

    base.read = failing  # type: ignore[method-assign]
    clips = created(tmp_path, base, workers=0)
    there = [each.index for each in clips.wanted() if each.key in clips.store]
    assert there == [0, 1, 3, 4, 5] and all(key in clips.store for key in clips.captions())


def test_a_reading_process_that_is_killed_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "built", stand_in)
    base = SFTDataset(str(ASSETS / "clips"), (32, 48), fps=8, max_num_frames=5)
    base.read = lambda index, choices: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
    with pytest.raises(UserError, match="a process that reads clips has died .*--num-workers"):
        created(tmp_path, base, workers=1)
