"""What a run is after it went back. Truth: the best evaluation is one that still counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.checkpoint.saving import random_state
from cogvideox.sat_bridge import rolling_back
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.sat_bridge.run import Run

SAVED = {"loss": 2.0, "iteration": 2}


@pytest.mark.parametrize(
    ("best", "logged_at_4", "kept"),
    [
        ({"loss": 1.0, "iteration": 6}, None, SAVED),
        ({"loss": 1.0, "iteration": 6}, 1.5, {"loss": 1.5, "iteration": 4}),
        ({"loss": 1.0, "iteration": 6}, 2.5, SAVED),
        ({"loss": 1.5, "iteration": 4}, 1.5, {"loss": 1.5, "iteration": 4}),
        (None, None, None),
    ],
)
def test_the_best_evaluation_is_none_of_what_is_void(
    monkeypatch: pytest.MonkeyPatch, best: Any, logged_at_4: float | None, kept: Any
) -> None:
    told: list[Any] = []
    run = Run.__new__(Run)
    logged = None if logged_at_4 is None else {"loss": logged_at_4}
    run.__dict__ |= {
        "best": best,
        "args": SimpleNamespace(iteration=7, seed=1),
        "recorder": Recorder(skipped_batches=5, skipped_steps=3),
        "checkpoints": SimpleNamespace(go_on_from=told.append),
        "train_data": SimpleNamespace(start_at=lambda *given: told.append(given)),
        "watch": SimpleNamespace(restore=told.append),
        "reporter": SimpleNamespace(evaluation_at=lambda _: logged, go_back_to=told.append),
    }
    state = {
        "client_lr_scheduler": {},
        "iteration": 4,
        "skipped_batches": 1,
        "best": SAVED,
        "data": "the data's place",
        "numbers": "what is known of numbers",
        "random_states": [random_state()],
    }
    monkeypatch.setattr(rolling_back, "resume_engine", lambda *_: state)
    scheduler: Any = SimpleNamespace(load_state_dict=lambda _: None)
    rolling_back.Recovery(run)._go_back(None, scheduler, Path("4"))
    assert run.best == kept
    # The counts are of the whole run; the data's place is counted on from them.
    assert (run.recorder.skipped_batches, run.recorder.skipped_steps) == (5, 3)
    assert told == [4, (4, 5, "the data's place"), "what is known of numbers", 4]
