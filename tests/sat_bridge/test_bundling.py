"""Writing a replay bundle. Truths: it holds what was computed and no password; one that fails leaves nothing behind."""

from __future__ import annotations

import errno
import logging
import math
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.loading import read_starting_weights
from cogvideox.checkpoint.replay_bundle import read_forward, read_step
from cogvideox.checkpoint.saving import random_state
from cogvideox.sat_bridge.bad_numbers import GRADIENTS, NumberWatch
from cogvideox.sat_bridge.bundling import keep_bad_step
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.sat_bridge.walk import Walk


class Engine:
    """Without DeepSpeed, one rank; the gradients of some batches are not finite."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(2, 1)
        self.module.dtype, self.module.loss_fn = torch.float32, SimpleNamespace(drawn_t=torch.tensor([7, 8]))
        self.optimizer = torch.optim.SGD(self.module.parameters())
        self.micro_steps = 0

    def gradient_accumulation_steps(self) -> int:
        return 2

    def zero_optimization_partition_weights(self) -> bool:
        return False

    def backward(self, loss: torch.Tensor) -> None:
        (loss / 2).backward()


class Loader:
    order_id = "an order"

    def __init__(self) -> None:
        self.walk = Walk()

    def clips_of(self, step: int) -> list[str]:
        return [f"https://me:secret@host/shards: {step}.mp4"]

    def batch_of(self, step: int) -> dict[str, Any]:
        return {"x": torch.full((3, 2), float(step)), "txt": ["a", "b", "c"]}


def after_a_bad_step(engine: Engine) -> tuple[NumberWatch, Any]:
    """A watch that has seen a step of two micro-batches, and the forward that they had: the second has the gradient."""

    def forward(batch: dict[str, Any]) -> torch.Tensor:
        noise = torch.rand(())
        loss = (engine.module(batch["x"]) * noise).sum()
        if batch["x"][0, 0] == 1:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    watch = NumberWatch(2, Recorder(), SimpleNamespace(data_line=lambda *_: None))
    watch.loader = Loader()
    watch.begin()
    for step in range(2):
        began = watch.forward_begins()
        watch.forward_ended(began, engine, forward(watch.loader.batch_of(step)))
    watch.bad(12, GRADIENTS)
    return watch, forward


def test_the_micro_batch_that_goes_wrong_is_kept(tmp_path: Path) -> None:
    engine = Engine()
    watch, forward = after_a_bad_step(engine)
    draws, seen = watch.micro_batches[1].random_state, float(watch.micro_batches[1].loss)
    (tmp_path / "training_config.yaml").write_text("args: {}")
    folder = keep_bad_step(tmp_path, 12, engine, watch, forward, None)
    assert folder == tmp_path / "bad-step-12"
    step = read_step(folder)
    (record,) = step.records
    assert (step.iteration, step.cause, step.accumulation) == (12, GRADIENTS, 2)
    assert record.seen_loss == record.loss == seen and record.gradient_norms == {"": math.inf}
    assert record.clips == ["https://***@host/shards: 1.mp4"] and record.timesteps == [7, 8]
    kept = read_forward(folder, record)
    assert torch.equal(kept.batch["x"], torch.ones(3, 2)) and kept.batch["txt"] == ["a", "b", "c"]
    assert torch.equal(kept.random_state["torch"], draws["torch"])
    weights = read_starting_weights(folder).state_dict
    assert all(torch.equal(weights[name], each) for name, each in engine.module.state_dict().items())
    assert (folder / "training_config.yaml").read_text() == "args: {}"
    assert all(each.grad is None for each in engine.module.parameters())
    assert keep_bad_step(tmp_path, 12, engine, watch, forward, None) == tmp_path / "bad-step-12-2"


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    """Full after so many writes: torch's writer fails in its own way then."""
    engine = Engine()
    watch, forward = after_a_bad_step(engine)
    real, writes = durable.Hashing.write, count()

    def write(file: durable.Hashing, data: Any) -> int:
        if next(writes) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(durable.Hashing, "write", write)
    with caplog.at_level(logging.WARNING):
        assert keep_bad_step(tmp_path, 12, engine, watch, forward, None) is None
    assert "no replay bundle" in caplog.text and "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_read_again_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    watch, forward = after_a_bad_step(engine)
    watch.loader.batch_of = lambda _: None
    before = random_state()["torch"]
    with caplog.at_level(logging.WARNING):
        assert keep_bad_step(tmp_path, 12, engine, watch, forward, None) is None
    assert "cannot be read again" in caplog.text and torch.equal(random_state()["torch"], before)
