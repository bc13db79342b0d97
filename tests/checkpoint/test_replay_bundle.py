"""Replay bundles. Truths: round trip; each kind of damage gives one clear error, and nothing in a bundle is run."""

from __future__ import annotations

import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cogvideox.checkpoint.gradient_norms import GradientNorms, layer_of
from cogvideox.checkpoint.replay_bundle import (
    BadStep,
    Forward,
    RankRecord,
    plain_part,
    read_forward,
    read_step,
    write_forward,
    write_step,
)
from cogvideox.checkpoint.resuming import restore_random_state
from cogvideox.checkpoint.saving import random_state
from cogvideox.errors import UserError
from tools.replay import MISTAKE, main

BATCH = {"mp4": torch.rand(2, 5, 3, 4, 6)[:, ::2], "txt": ["a", "ä\n"], "fps": torch.tensor([8, 8]), "odd": object()}


def step_with(**changes: Any) -> BadStep:
    record = RankRecord(
        rank=3,
        seen_loss=math.nan,
        loss=math.inf,
        clips=["videos/a.mp4"],
        timesteps=[1, 999],
        gradient_norms={"layers.0": -math.inf, "layers.1": 0.5},
        rest=plain_part(BATCH),
    )
    values: dict[str, Any] = {
        "iteration": 12,
        "cause": "the loss is not finite",
        "ranks": 4,
        "model_ranks": 1,
        "accumulation": 2,
        "loss_scale": 1.0,
        "dtype": "float32",
        "device": "cpu",
        "base_weights": None,
        "records": [record],
    }
    return BadStep(**values | changes)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_step(tmp_path, step_with())
    write_forward(tmp_path, 3, Forward(BATCH, random_state()))
    return tmp_path


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_round_trip(tmp_path: Path) -> None:
    state = random_state()
    expected = draws()
    write_step(tmp_path, step_with())
    write_forward(tmp_path, 3, Forward(BATCH, state))
    step = read_step(tmp_path)
    (record,) = step.records
    assert math.isnan(record.seen_loss) and record.loss == math.inf
    assert record.gradient_norms == {"layers.0": -math.inf, "layers.1": 0.5}
    assert (step.iteration, record.clips, record.timesteps) == (12, ["videos/a.mp4"], [1, 999])
    forward = read_forward(tmp_path, record)
    assert set(forward.batch) == {"mp4", "txt", "fps"} and forward.batch["txt"] == BATCH["txt"]
    assert torch.equal(forward.batch["mp4"], BATCH["mp4"])
    restore_random_state(forward.random_state)
    assert draws() == expected


def _without(key: str) -> Any:
    def damage(content: dict[str, Any]) -> None:
        del content[key]

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without("records"), "does not have the keys"),
        (lambda content: content.update(format=2), "no format 1"),
        (lambda content: content.update(more=1), "does not have the keys"),
        (lambda content: content.update(records=[]), "the records of no rank"),
        (lambda content: content.update(records=[7]), "does not have the keys"),
        (lambda content: content["records"][0].update(rank="../../x"), "'rank' is no int"),
        (lambda content: content["records"][0].update(loss="much"), "much"),
        (lambda content: content["records"][0]["gradient_norms"].update(x=[1]), "float"),
        (lambda content: content.update(iteration=None), "'iteration' is no int"),
        (lambda content: content.update(dtype="int8"), "'int8' is none of"),
        (lambda content: content.update(device="a GPU"), "a GPU"),
    ],
)
def test_damaged_json_is_one_error(bundle: Path, capsys: pytest.CaptureFixture[str], damage: Any, said: str) -> None:
    content = json.loads((bundle / "bundle.json").read_text())
    damage(content)
    (bundle / "bundle.json").write_text(json.dumps(content))
    one_error(bundle, capsys, said)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000, "null"])
def test_what_is_no_json_is_one_error(bundle: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (bundle / "bundle.json").write_text(text, encoding="latin-1")
    one_error(bundle, capsys, "bundle.json")


@pytest.mark.parametrize("name", ["bundle.json", "rank_00003.safetensors", "rank_00003_random.pt"])
def test_missing_and_cut_files_are_one_error(bundle: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: len(content) // 2])
    one_error(bundle, capsys, name)
    (bundle / name).unlink()
    one_error(bundle, capsys, name)


def test_a_bundle_runs_no_code(bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was_here",)

    (bundle / "rank_00003_random.pt").write_bytes(pickle.dumps(Evil()))
    one_error(bundle, capsys, "rank_00003_random.pt")
    torch.save({"python": Evil()}, bundle / "rank_00003_random.pt")
    one_error(bundle, capsys, "rank_00003_random.pt")
    assert not (tmp_path / "was_here").exists()
    torch.save({"python": 1}, bundle / "rank_00003_random.pt")
    one_error(bundle, capsys, "holds no random states")


def test_without_a_whole_config_and_weights_it_is_one_error(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_error(bundle, capsys, "training_config.yaml")
    (bundle / "training_config.yaml").write_text("model: !!python/object/apply:os.getcwd []")
    one_error(bundle, capsys, "training_config.yaml")
    (bundle / "training_config.yaml").write_text("model: {network_config: 3}")
    one_error(bundle, capsys, "says nothing of a network")
    config = "model: {network_config: {target: torch.nn.Identity, params: {transformer_args: {}}}}"
    (bundle / "training_config.yaml").write_text(config)
    one_error(bundle, capsys, "has no weights")
    (bundle / "mp_rank_00_model_states.pt").touch()
    one_error(bundle, capsys, "says nothing of 'denoiser_config'")
    one_error(bundle / "nothing", capsys, "nothing is not there")


def one_error(bundle: Path, capsys: pytest.CaptureFixture[str], said: str) -> None:
    assert main([str(bundle)]) == MISTAKE
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and said in printed.err
    assert "Traceback" not in printed.err and len(printed.err.splitlines()) < 6


def test_a_forward_that_is_not_there_is_an_error_of_the_user(tmp_path: Path) -> None:
    write_step(tmp_path, step_with())
    with pytest.raises(UserError, match=r"rank_00003\.safetensors"):
        read_forward(tmp_path, read_step(tmp_path).records[0])


def test_gradient_norms_are_those_of_each_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(1, 1))
    model[2].requires_grad_(False)
    with GradientNorms(model) as norms:
        (100 * model(torch.rand(5, 3))).sum().backward()

    def norm(layer: nn.Module) -> Tensor:
        return torch.cat([each.grad.flatten() for each in layer.parameters()]).norm()

    measured = norms.by_layer()
    assert list(measured) == ["0", "1"]
    assert measured == {str(place): pytest.approx(float(norm(model[place])), rel=1e-5) for place in range(2)}
    model(torch.rand(5, 3)).sum().backward()
    assert norms.by_layer() == measured, "it measures inside its block only"


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        (
            "model.transformer.layers.12.attention.dense.weight",
            "model.transformer.layers.12",
        ),
        ("model.mixins.adaln_layer.adaLN_modulations.3.1.bias", "model.mixins.adaln_layer.adaLN_modulations.3"),
        ("transformer.final_layernorm.weight", "transformer.final_layernorm"),
    ],
)
def test_layers_are_told_from_names(parameter: str, layer: str) -> None:
    assert layer_of(parameter) == layer
