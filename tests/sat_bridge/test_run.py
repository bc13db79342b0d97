"""What a run tells of bad clips. Truths: golden values of what is told and of where the limit lies."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.errors import UserError
from cogvideox.sat_bridge import training
from cogvideox.sat_bridge.numbered import TellsReplaced
from cogvideox.sat_bridge.run import Run


class Loader(TellsReplaced):
    """Of 10 clips, of which `bad` were stood in for; each comes three times."""

    clips, samples = 10, 30

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.noted({"replaced": [(f"{number}.mp4", "do not decode", "is damaged") for number in range(bad)]})

    def __len__(self) -> int:
        return 2


def run_with(told: list[Any], **loaders: Loader) -> Run:
    run = Run.__new__(Run)
    reporter = SimpleNamespace(
        bad_clip=lambda *said: told.append(said), evaluation=lambda *_: None, write_report=lambda: None
    )
    run.__dict__ |= {
        "args": argparse.Namespace(max_bad_fraction=0.5, strict_eval=True, iteration=7),
        "reporter": reporter,
        "_timers": None,
        "best": None,
        "_bad_clips": {},
        "_bad_in_evaluations": {"val": {}, "test": {}},
        **loaders,
    }
    return run


@pytest.mark.parametrize(("bad", "ends"), [(5, False), (6, True)])
def test_the_limit_is_a_share_of_the_clips_not_of_their_repeats(bad: int, ends: bool) -> None:
    told: list[Any] = []
    run = run_with(told, train_data=Loader(bad))
    if ends:
        with pytest.raises(UserError, match="6 of 10 clips"):
            run._tell_of_bad_clips(3)
    else:
        run._tell_of_bad_clips(3)
    assert told[-1] == (3, f"{bad - 1}.mp4", "do not decode", "is damaged", bad)


def test_clips_that_fail_in_an_evaluation_are_told_once_with_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    run = run_with(told, train_data=Loader(0), valid_data=Loader(1), test_data=Loader(1))
    monkeypatch.setattr(training, "evaluate", lambda *_: {"loss": 1.0})
    for split in ("val", "val", "test"):
        hooks = {"forward_step_eval": None}
        run.evaluate_and_print_results("x", None, None, 2, run.args, None, False, split, hooks=hooks)  # type: ignore[arg-type]
    reasons = ["is damaged (val data)", "is damaged (test data)"]
    assert told == [(7, "0.mp4", "do not decode", reason, 1) for reason in reasons]
    run._tell_of_bad_clips(7)
    assert len(told) == 2
