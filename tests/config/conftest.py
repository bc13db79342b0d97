"""`get_args` on the quickstart config, with a folder in place of its assets."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from arguments import get_args

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
VAE = "model.first_stage_config.params.ckpt_path"
T5 = "model.conditioner_config.params.emb_models.0.params.model_dir"
Run = Callable[..., argparse.Namespace]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with everything that the preflight looks for; of the files it has no more than their beginning."""
    for folder in ("clips/videos", "t5", "weights/1"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("clips/videos/a.mp4", "3d-vae.pt", "weights/1/mp_rank_00_model_states.pt"):
        (tmp_path / file).write_bytes(b"PK\x03\x04")
    (tmp_path / "weights/latest").write_text("1")
    return tmp_path


@pytest.fixture
def run(place: Path) -> Run:
    """`get_args` on the quickstart config, whose assets are replaced by those of `place`, and more words."""
    found = [
        f"args.train_data=[{place}/clips]",
        f"{VAE}={place}/3d-vae.pt",
        f"{T5}={place}/t5",
        f"args.save={place}/runs",
    ]

    def call(*words: str, base: tuple[str, ...] = (QUICKSTART,)) -> argparse.Namespace:
        return get_args(["--base", *base, *found, *words])

    return call


@pytest.fixture
def quickstart() -> dict[str, Any]:
    """The quickstart config as it stands in its file: its numbers may be tuned without a change of the tests."""
    content = yaml.safe_load(Path(QUICKSTART).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.fixture
def write(place: Path) -> Callable[..., str]:
    """Write a file into `place` and return its path."""

    def call(text: str, name: str = "more.yaml") -> str:
        (place / name).write_text(text)
        return str(place / name)

    return call
