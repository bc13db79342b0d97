"""Truths: EmaAdamW steps as torch's AdamW does, its shadow is the recursion written out, its state is reloadable."""

from __future__ import annotations

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.sat_bridge.optimizer import EmaAdamW, optimizer_factory


def run(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, steps: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    path = []
    for _ in range(steps):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def test_steps_are_adamws() -> None:
    ours, theirs = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    run(EmaAdamW([ours], lr=0.1), ours, 5)
    run(torch.optim.AdamW([theirs], lr=0.1), theirs, 5)
    assert torch.equal(ours, theirs)


def test_shadow_is_the_ramped_average_of_the_weights() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = EmaAdamW([parameter], lr=0.1, ema_decay=0.3)
    path = run(optimizer, parameter, 6)
    shadow = path[0]
    for n, weights in enumerate(path, start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        shadow = decay * shadow + (1 - decay) * weights
    assert torch.allclose(optimizer.state[parameter]["shadow"], shadow)


def test_state_with_its_shadow_survives_a_reload() -> None:
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    one, other = EmaAdamW([first]), EmaAdamW([second])
    run(one, first, 3)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.state[second]["shadow"], one.state[first]["shadow"])


@pytest.mark.parametrize(
    ("name", "cls"),
    [("sat.ops.FusedEmaAdam", EmaAdamW), ("AdamW", torch.optim.AdamW), ("Adam", torch.optim.AdamW)],
)
def test_types_of_configs(name: str, cls: type) -> None:
    params = {"lr": 1e-5, "betas": [0.9, 0.95], "eps": "1e-8", "weight_decay": "1e-4"}
    optimizer = optimizer_factory({"type": name, "params": params})([torch.nn.Parameter(torch.zeros(2))])
    assert type(optimizer) is cls
    assert optimizer.defaults["eps"] == 1e-8 and optimizer.defaults["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("config", [{"type": "Lion9"}, {"type": "AdamW", "params": {"learning_rate": 1}}])
def test_mistakes_are_named(config: dict) -> None:
    with pytest.raises(UserError, match=r"deepspeed\.optimizer"):
        optimizer_factory(config)
