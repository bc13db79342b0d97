"""fetch_weights.py on a hub that is a folder; nothing here reaches the network.

Truths checked: identity (what the hub has arrives where the configs look), golden messages.
"""

from __future__ import annotations

import hashlib
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled

from cogvideox.checkpoint.published import MODELS
from tests.transformer import five
from tests.vae.small import build_diffusers
from tools import convert_checkpoint, fetch_weights

PACKAGE = {
    "transformer/config.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": b"t" * 3000,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"v" * 1000,
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"e" * 500,
    "tokenizer/spiece.model": b"s" * 70,
    "README.md": b"not wanted",
}


class Hub:
    """Stands for huggingface_hub: packages in a folder, and what was asked of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.broken: Exception | None = None
        for model in MODELS.values():
            for name, content in PACKAGE.items():
                path = root / model.repository / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def model_info(self, repo_id: str, *, files_metadata: bool) -> Any:
        assert files_metadata
        if self.broken is not None:
            raise self.broken
        folder = self.root / repo_id
        return SimpleNamespace(sha="abc", siblings=[self.sibling(folder, p) for p in sorted(folder.rglob("*.*"))])

    def sibling(self, folder: Path, path: Path) -> Any:
        content = path.read_bytes()
        is_large = path.suffix == ".safetensors"
        lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if is_large else None
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        name = path.relative_to(folder).as_posix()
        return SimpleNamespace(rfilename=name, size=len(content), lfs=lfs, blob_id=blob)

    def snapshot_download(self, repo_id: str, *, revision: str, allow_patterns: list[str], local_dir: Path) -> str:
        assert revision == "abc"
        for path in sorted((self.root / repo_id).rglob("*.*")):
            name = path.relative_to(self.root / repo_id).as_posix()
            target = local_dir / name
            if any(fnmatch(name, pattern) for pattern in allow_patterns) and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
                self.asked.append(f"{repo_id}/{name}")
        return str(local_dir)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setenv("COGVIDEOX_WEIGHTS", str(tmp_path / "weights"))
    return hub


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = fetch_weights.main(list(arguments))
    captured = capsys.readouterr()
    assert status == 0 or captured.out == ""
    return status, captured.out + captured.err


@pytest.mark.parametrize("model", MODELS)
def test_a_package_arrives(hub: Hub, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = run(capsys, model)
    assert status == 0
    folder = tmp_path / "weights" / MODELS[model].repository.partition("/")[2]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    assert files == {name: content for name, content in PACKAGE.items() if name.startswith(("transformer/", "vae/"))}
    encoder = tmp_path / "weights" / "t5-v1_1-xxl"
    assert (encoder / "text_encoder" / "model.safetensors").read_bytes() == b"e" * 500
    assert (encoder / "tokenizer" / "spiece.model").is_file()
    assert f"--base configs/{MODELS[model].config} configs/{MODELS[model].task}" in said
    assert f"--load {folder}/transformer model.first_stage_config.params.ckpt_path={folder}/vae" in said


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "2b")
    hub.asked.clear()
    (tmp_path / "weights" / "CogVideoX-2b" / "vae" / "config.json").unlink()
    assert run(capsys, "2b")[0] == 0
    assert hub.asked == ["zai-org/CogVideoX-2b/vae/config.json"]


def test_a_text_encoder_in_any_layout_will_do(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "weights" / "t5-v1_1-xxl"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "spiece.model"):
        (folder / name).write_bytes(b"")
    assert run(capsys, "5b")[0] == 0
    assert not any("text_encoder" in name for name in hub.asked)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(b"t" * 2999 + b"x", "has another hash than on the hub"), (b"t" * 10, "has 10 bytes of 3,000")],
)
def test_damaged_files_are_fetched_anew(
    hub: Hub, tmp_path: Path, damage: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "2b")
    path = tmp_path / "weights" / "CogVideoX-2b" / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(damage)
    status, said = run(capsys, "2b")
    assert status == 2 and message in said and "Run this again" in said
    assert run(capsys, "2b")[0] == 0
    assert path.read_bytes() == b"t" * 3000


@pytest.mark.parametrize(
    "error", [OfflineModeIsEnabled("offline mode"), httpx.ConnectError("no route to host"), OSError("disk on fire")]
)
@pytest.mark.parametrize("sat", [True, False])
def test_offline_it_says_what_to_place_where(
    hub: Hub, tmp_path: Path, error: Exception, sat: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.broken = error
    status, said = run(capsys, "1.5-5b-i2v", *["--sat"] * sat)
    assert status == 2 and str(error) in said and "Traceback" not in said
    folder = tmp_path / "weights" / "CogVideoX1.5-5B-I2V"
    assert f"https://huggingface.co/zai-org/CogVideoX1.5-5B-I2V: transformer/* → {folder}/transformer" in said
    assert f"vae/* → {folder}/vae" in said and "t5-v1_1-xxl/tokenizer" in said
    command = f"convert_checkpoint.py {folder}/vae {tmp_path}/weights/CogVideoX1.5-5B-SAT/vae/3d-vae.pt --to sat"
    assert (command if sat else f"--load {folder}/transformer") in said


def test_room_is_looked_for_first(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    status, said = run(capsys, "2b")
    assert status == 2 and "GB free" in said and hub.asked == []


@pytest.mark.parametrize("model", MODELS)
def test_converted_weights_are_where_the_config_looks(
    hub: Hub, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[list[str]] = []
    monkeypatch.setattr(convert_checkpoint, "parse", lambda command: command)
    monkeypatch.setattr(convert_checkpoint, "convert", lambda command: done.append(command) or iter(()))
    where = fetch_weights.places(MODELS[model])
    status, said = run(capsys, model, "--sat")
    package = tmp_path / "weights" / MODELS[model].repository.partition("/")[2]
    assert status == 0 and f"configs/{MODELS[model].config} reads these" in said
    assert done == [
        [str(package / "transformer"), str(where.transformer), "--to", "sat"],
        [str(package / "vae"), str(where.vae), "--to", "sat"],
    ]
    assert where.vae.name == "3d-vae.pt" and where.text_encoder == tmp_path / "weights" / "t5-v1_1-xxl"


def test_fetched_and_converted(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way with tiny networks, on which the real conversion runs."""
    from diffusers import CogVideoXTransformer3DModel

    package = hub.root / MODELS["5b"].repository
    shutil.rmtree(package)
    twin = CogVideoXTransformer3DModel(**five.diffusers_options(five.KINDS["5B"], five.TINY))
    twin.save_pretrained(package / "transformer")
    build_diffusers().save_pretrained(package / "vae")
    status, said = run(capsys, "5b", "--sat")
    assert status == 0, said
    weights = tmp_path / "weights" / "CogVideoX-5b-sat"
    module = torch.load(weights / "transformer" / "1" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert "model.diffusion_model.transformer.layers.1.attention.query_key_value.weight" in module
    assert "decoder.conv_in.conv.weight" in torch.load(weights / "vae" / "3d-vae.pt", weights_only=True)["state_dict"]
    assert "is there already: not converted again" in run(capsys, "5b", "--sat")[1]


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = run(capsys, "--list")
    assert [line.split()[0] for line in said.splitlines()] == list(MODELS)
    assert "zai-org/CogVideoX1.5-5B-I2V" in said and "configs/cogvideox1.5_5b_i2v.yaml" in said


@pytest.mark.parametrize("arguments", [[], ["6b"], ["2b", "--list"]])
def test_the_command_line_is_checked(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fetch_weights.main(arguments)
    assert caught.value.code == 2
