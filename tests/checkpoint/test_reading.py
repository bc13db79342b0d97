"""Weight files in every form, sound and broken, and strict loading.

Truths checked: round trip (what was written is read), golden messages.
"""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from cogvideox.checkpoint.reading import load_strictly, read_state_dict
from cogvideox.errors import UserError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


class Surprise:
    """What a pickle may hide: code that runs when it is read."""

    ran = False

    def __reduce__(self):
        return (setattr, (Surprise, "ran", True))


def assert_read(path) -> None:
    state = read_state_dict(path)
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor)
        assert state[name].device.type == "cpu"


@pytest.mark.parametrize("suffix", ["pt", "ckpt", "bin", "pth"])
@pytest.mark.parametrize(
    "content",
    [STATE, {"state_dict": STATE}, {"module": STATE, "step": 3}, {"state_dict": {"module": STATE}}],
    ids=["plain", "state_dict", "module", "both"],
)
def test_torch_files(tmp_path, suffix, content):
    torch.save(content, tmp_path / f"weights.{suffix}")
    assert_read(tmp_path / f"weights.{suffix}")


def test_torch_file_of_the_old_format(tmp_path):
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_read(tmp_path / "old.pt")


def test_safetensors_file(tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors")
    assert_read(str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("step", ["release", "1000"])
def test_sat_folder(tmp_path, step):
    (tmp_path / step).mkdir()
    torch.save({"module": STATE, "client_lr_scheduler": {}}, tmp_path / step / "mp_rank_00_model_states.pt")
    (tmp_path / "latest").write_text(f"{step}\n")
    assert_read(tmp_path)
    assert_read(tmp_path / step)


def test_diffusers_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file(STATE, tmp_path / "diffusion_pytorch_model.safetensors")
    assert_read(tmp_path)


def test_sharded_diffusers_folder(tmp_path):
    weight_map = {}
    for i, (name, tensor) in enumerate(STATE.items()):
        weight_map[name] = f"diffusion_pytorch_model-{i}.safetensors"
        save_file({name: tensor}, tmp_path / weight_map[name])
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_read(tmp_path)
    (tmp_path / weight_map["a.bias"]).unlink()
    with pytest.raises(UserError, match="shards that are not there: diffusion_pytorch_model-1.safetensors"):
        read_state_dict(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="not an index of weight shards"):
        read_state_dict(tmp_path)


def test_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": STATE, "hook": Surprise()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="bad.pt: refused.*run code(.|\n)*weights_only=False(.|\n)*bad.plain.pt"):
        read_state_dict(tmp_path / "bad.pt")
    assert not Surprise.ran


def test_missing(tmp_path):
    with pytest.raises(UserError, match="nowhere.pt: no such weight file or folder"):
        read_state_dict(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="holds no weights"):
        read_state_dict(tmp_path)
    (tmp_path / "latest").write_text("7")
    with pytest.raises(UserError, match="names '7', but there is no .*mp_rank_00_model_states.pt"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_unreadable(tmp_path, name, damage):
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>not found</html>", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(UserError, match=str(path)):
        read_state_dict(path)


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, torch.zeros(2), {}])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no named tensors"):
        read_state_dict(tmp_path / "w.pt")


def test_which_file_is_asked(tmp_path):
    for name in ("one", "two"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"2 weight files \(one.safetensors, two.safetensors\): name one"):
        read_state_dict(tmp_path)
    (tmp_path / "w.npz").write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="w.npz: weights are read from .safetensors and .pt"):
        read_state_dict(tmp_path / "w.npz")


def test_a_part_of_the_weights_is_not_taken_for_the_whole(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "latest").write_text("7")
    for rank in range(2):
        torch.save({"module": STATE}, tmp_path / "7" / f"mp_rank_{rank:02d}_model_states.pt")
    for path in (tmp_path, tmp_path / "7"):
        with pytest.raises(UserError, match=r"7 is cut for 2 model parallel ranks: .*\n.*convert_checkpoint.py "):
            read_state_dict(path)
    assert_read(tmp_path / "7" / "mp_rank_01_model_states.pt")


def test_files_that_packages_hold_alone(tmp_path):
    for name in ("3d-vae.pt", "diffusion_pytorch_model.bin", "pytorch_lora_weights.safetensors"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (save_file if name.endswith(".safetensors") else torch.save)(STATE, folder / name)
        assert_read(folder)


def test_a_whole_package_is_told_its_parts(tmp_path):
    for name in ("transformer", "vae", "text_encoder"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="is a whole package: name .*transformer or .*vae"):
        read_state_dict(tmp_path)


def test_strict_loading_reports_everything_at_once():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(20, 1)})
    state = {"a.weight": torch.zeros(2, 4), "a.bias": torch.ones(2), **{f"x.{i}": torch.zeros(1) for i in range(12)}}
    before = module["a"].bias.clone()
    with pytest.raises(UserError) as caught:
        load_strictly(module, state, "some/file.pt")
    text = str(caught.value)
    assert text.splitlines()[0] == "some/file.pt does not fit the ModuleDict that the config describes:"
    assert "2 missing: b.weight, b.bias" in text
    assert "12 unexpected: x.0, x.1" in text and "and 4 more" in text and "x.11" not in text
    assert "1 of another shape: a.weight (2, 4), wanted (2, 3)" in text
    assert torch.equal(module["a"].bias, before)


def test_strict_loading_with_what_may_differ():
    module = torch.nn.Linear(3, 2)
    report = load_strictly(
        module,
        {"weight": torch.full((2, 3), 2.0), "loss.x": torch.zeros(1)},
        "file",
        ignore_prefixes=("loss.",),
        allow_missing=("bias",),
    )
    assert (report.loaded, report.ignored, report.missing) == (1, ("loss.x",), ("bias",))
    assert torch.equal(module.weight, torch.full((2, 3), 2.0))
