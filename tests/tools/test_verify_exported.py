"""tools/verify_exported.py. Truth: reference. Each of the five models, full and with adapters, in either precision,
gives in diffusers' class what it gives here; a model that diffusers has no form for is told, not failed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.end_to_end.runs import QUICKSTART
from tests.transformer import five, tiny
from tools import verify_checkpoint, verify_rows

LORA = {"r": 4, "lora_alpha": 6.0}


def write_run(folder: Path, kind: five.Kind, lora: dict | None, dtype: torch.dtype, **positions: object) -> Path:
    """A run's folder as training leaves it, with random weights."""
    network = five.params_of(kind, five.TINY, lora)
    network["modules"]["pos_embed_config"]["params"] |= positions
    model = five.DiffusionTransformer(**network)
    tiny.fill_randomly(model)
    state = {f"model.diffusion_model.{name}": tensor.to(dtype) for name, tensor in model.state_dict().items()}
    config = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    names = ("denoiser_config", "loss_fn_config", "sampler_config")
    nodes = {name: config["model"][name] for name in names}
    nodes["loss_fn_config"]["params"]["sigma_sampler_config"]["params"]["discretization_config"] = nodes[
        "sampler_config"
    ]["params"]["discretization_config"] = nodes["denoiser_config"]["params"]["discretization_config"]
    target = config["model"]["network_config"]["target"]
    nodes["network_config"] = {"target": target, "params": network}
    written = {"args": {"bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16}, "model": nodes}
    (folder / "3").mkdir(parents=True)
    (folder / "training_config.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    torch.save({"module": state}, folder / "3" / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("3")
    return folder


def difference_of(row: verify_checkpoint.Row) -> float:
    return float(row.output.split()[0])


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", five.KINDS)
def test_each_model_computes_the_same_in_diffusers(tmp_path: Path, name: str, lora: dict | None) -> None:
    rows, notes = verify_checkpoint.verify(write_run(tmp_path, five.KINDS[name], lora, torch.float32))
    raw, exported = rows
    assert not raw.problems and not exported.problems, verify_checkpoint.table(rows)
    assert difference_of(exported) <= 1e-5
    assert len(notes) == 1 and "--verify-save" in notes[0]


@pytest.mark.parametrize(("name", "dtype"), [("2B", torch.float16), ("1.5-5B-I2V", torch.bfloat16)])
def test_half_precision_is_within_its_rounding(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    rows, _ = verify_checkpoint.verify(write_run(tmp_path, five.KINDS[name], LORA, dtype))
    assert not rows[1].problems, verify_checkpoint.table(rows)
    assert 1e-5 < difference_of(rows[1]) < verify_rows.TOLERANCE[dtype] / 2


def test_stretched_rotary_positions_are_not_diffusers(tmp_path: Path) -> None:
    run = write_run(tmp_path, five.KINDS["5B"], None, torch.float32, height_interpolation=2.0)
    rows, notes = verify_checkpoint.verify(run)
    assert [row.weights for row in rows] == ["raw"] and "rotary positions" in notes[1]


def test_a_module_of_ones_own_is_not_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_arguments: object) -> None:
        raise verify_checkpoint.UserError("1 weights are not those of a CogVideoX transformer")

    monkeypatch.setattr("tools.verify_exported.to_diffusers", refuses)
    rows, notes = verify_checkpoint.verify(write_run(tmp_path, five.KINDS["5B"], None, torch.float32))
    assert [row.weights for row in rows] == ["raw"] and "not those of a CogVideoX transformer" in notes[1]
