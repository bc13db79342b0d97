"""Targets and instantiation. Truths: the alias table of the reference's paths; classes' own signatures (identity)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cogvideox.config import ALIASES, OPTIMIZER_TYPES, allowed_modules, instantiate, resolve_target
from cogvideox.config.binding import signature_of
from cogvideox.config.static_signature import static_signature
from cogvideox.errors import UserError


@pytest.mark.parametrize("path", sorted(ALIASES))
def test_every_path_of_the_reference_resolves(path: str) -> None:
    target = resolve_target(path)
    assert f"{target.__module__}.{target.__qualname__}" == ALIASES[path]


@pytest.mark.parametrize("path", [*sorted(set(ALIASES.values())), "data_video.SFTDataset"])
def test_signature_read_from_source_equals_the_imported_one(path: str) -> None:
    module, _, name = path.rpartition(".")
    static, real = static_signature(module, name), signature_of(resolve_target(path))
    if static is None:  # a class without an `__init__` of ours: the validator imports it
        return
    assert list(static.parameters) == list(real.parameters)
    assert static.supplied_by_parent == real.supplied_by_parent
    for key, parameter in static.parameters.items():
        assert parameter.is_required == real.parameters[key].is_required, key


def test_other_targets_of_the_reference_resolve() -> None:
    import torch

    assert resolve_target("torch.nn.Identity") is torch.nn.Identity


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("my_rooms.Room", "--allow-target my_rooms"),
        ("dit_video_concat.DiffusionTransfomer", "did you mean `dit_video_concat.DiffusionTransformer`"),
        ("torch.nn.Identiti", "did you mean `Identity`"),
        ("torch.load", "may not be named: give a class of sat.model, torch.nn"),
        ("cogvideox.nowhere.Thing", "does not import"),
        ("Thing", "not a dotted path"),
    ],
)
def test_a_bad_target_says_what_to_do(path: str, part: str) -> None:
    with pytest.raises(UserError, match=part.replace("(", r"\(")):
        resolve_target(path)


def test_a_module_of_the_user_resolves_once_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rooms.py").write_text("class Room:\n    def __init__(self, size: int = 1): self.size = size\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(allowed_modules, "names", [])
    with pytest.raises(UserError, match="--allow-target my_rooms"):
        instantiate({"target": "my_rooms.Room"})
    allowed_modules.allow("my_rooms")
    assert instantiate({"target": "my_rooms.Room", "params": {"size": 3.0}}).size == 3
    sys.modules.pop("my_rooms")


def test_instantiate_binds_converts_and_passes_on_what_the_parent_supplies() -> None:
    schedule = {"target": "sgm.modules.diffusionmodules.discretizer.ZeroSNRDDPMDiscretization"}
    params = {"num_idx": 1000, "discretization_config": schedule}
    draw = instantiate({"target": "sgm.modules.diffusionmodules.sigma_sampling.DiscreteSampling", "params": params})
    assert draw.num_idx == 1000
    linear = instantiate({"target": "torch.nn.Linear", "params": {"in_features": 3.0}}, out_features=2)
    assert linear.weight.shape == (2, 3)


def test_instantiate_reports_every_fault_at_once() -> None:
    with pytest.raises(UserError) as caught:
        instantiate(
            {"target": "torch.nn.Linear", "params": {"in_feature": 3, "out_features": 2, "device": "cpu"}}, bias=1
        )
    text = str(caught.value)
    assert "did you mean `in_features`?" in text and "missing" in text


def test_an_inert_key_is_dropped_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    node = {
        "target": "sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser",
        "params": {
            "num_idx": 1000,
            "weighting_config": {"target": "sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting"},
            "scaling_config": {"target": "sgm.modules.diffusionmodules.denoiser_scaling.VideoScaling"},
            "discretization_config": {
                "target": "sgm.modules.diffusionmodules.discretizer.ZeroSNRDDPMDiscretization",
            },
        },
    }
    with caplog.at_level("INFO", logger="cogvideox.config"):
        instantiate(node)
        instantiate(node)
    assert sum("weighting_config" in record.message for record in caplog.records) <= 1


@pytest.mark.parametrize(("name", "optimizer"), sorted(OPTIMIZER_TYPES.items()))
def test_every_optimizer_name_is_one_that_the_bridge_builds(name: str, optimizer: str) -> None:
    import torch

    from cogvideox.sat_bridge.optimizer import optimizer_factory

    made = optimizer_factory({"type": name, "params": {"lr": 0.1}})([torch.nn.Parameter(torch.zeros(1))])
    assert type(made).__name__ == optimizer
