"""Weight files in every form, sound and broken, and strict loading.

Truths checked: round trip (what was written is read), golden messages, reference (PEFT counts adapters with
lora_alpha / r of the config beside them).
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

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
    with pytest.raises(UserError, match=r"not there: fetch them too \(diffusion_pytorch_model-1.safetensors\)"):
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


def test_a_file_that_holds_itself_ends(tmp_path):
    content: dict[str, Any] = {"step": 3}
    content["module"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no named tensors"):
        read_state_dict(tmp_path / "w.pt")


LINEAR = "base_model.model.transformer_blocks.0.attn1.to_q"
PEFT = {f"{LINEAR}.lora_A.weight": torch.ones(4, 8), f"{LINEAR}.lora_B.weight": torch.ones(8, 4)}


def peft_folder(folder: Path, config: Any, state: dict[str, torch.Tensor] = PEFT) -> Path:
    """A folder as PEFT's `save_pretrained` writes it."""
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_peft_counts_with_the_config_beside_its_file(tmp_path):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 64, "alpha_pattern": {}, "use_rslora": False}
    folder = peft_folder(tmp_path / "peft", config)
    torch.save(PEFT, tmp_path / "peft" / "adapter_model.bin")
    for path in (folder, folder / "adapter_model.safetensors", folder / "adapter_model.bin"):
        state = read_state_dict(path)
        assert torch.equal(state[f"{LINEAR}.lora_A.weight"], torch.ones(4, 8))
        assert torch.equal(state[f"{LINEAR}.lora_B.weight"], torch.full((8, 4), 16.0))


def test_peft_itself_writes_what_is_read(tmp_path):
    peft = pytest.importorskip("peft")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q = torch.nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.to_q(x)

    adapted = peft.get_peft_model(Model(), peft.LoraConfig(r=4, lora_alpha=64, target_modules=["to_q"]))
    torch.nn.init.ones_(adapted.base_model.model.to_q.lora_B["default"].weight)
    adapted.save_pretrained(tmp_path / "peft")
    state = read_state_dict(tmp_path / "peft")
    a, b = (state[f"base_model.model.to_q.lora_{side}.weight"] for side in "AB")
    plain = adapted.base_model.model.to_q.base_layer.weight.detach().clone()
    merged = adapted.merge_and_unload().to_q.weight
    torch.testing.assert_close(plain + b @ a, merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, "use_rslora is not supported"),
        ({"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}}, "rank_pattern is not supported"),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}}, "alpha_pattern is not supported"),
        ({"r": 0, "lora_alpha": 8}, "r is 0, not a whole number from 1 on"),
        ({"lora_alpha": 8}, "r is None"),
        ({"r": 4}, "lora_alpha is None, not a positive number"),
        ({"r": 4, "lora_alpha": "64"}, "lora_alpha is '64'"),
        ({"r": 4, "lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"r": 8, "lora_alpha": 8}, "has r 8, but the adapters beside it have rank 4"),
        ({"r": 4, "lora_alpha": 8, "peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
        ("[1]", "list, not an object"),
        ("{", "no JSON"),
        (" " * 1_000_001, "1,000,001 bytes"),
    ],
)
def test_a_peft_config_is_checked(tmp_path, config, message):
    folder = peft_folder(tmp_path / "peft", config)
    with pytest.raises(UserError, match=rf"adapter_config\.json.*{message}"):
        read_state_dict(folder)


def test_peft_without_its_config_is_refused(tmp_path):
    folder = peft_folder(tmp_path / "peft", "{}")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="there is no .*adapter_config.json: copy it"):
        read_state_dict(folder)


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
