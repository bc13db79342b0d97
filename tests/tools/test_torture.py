"""Truths: the torture test objects to whatever differs, is lost, fails or hangs; its flags are checked together."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.checkpoint import saving
from cogvideox.parallel import Group
from tools import torture
from tools.torture_differences import differences
from tools.torture_rounds import MOMENTS, Failed, Moment, Pace, Row, Torture, check_announced, moments

MODEL, LAST = "mp_rank_00_model_states.pt", 4


def write_run(run: Path, iteration: int = LAST, loss: float = 0.5, **content: Any) -> None:
    """A run with one line of metrics and one checkpoint."""
    run.mkdir(parents=True, exist_ok=True)
    lines = [{"iteration": iteration, "loss": loss, "lr": 0.1, "grad_norm": 2.0, "seconds_per_iteration": loss}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = {"module": {"w": torch.arange(3.0)}, "random_states": [(1, "x")], "iteration": iteration}
    saving.store(saving.Snapshot(iteration, {MODEL: weights | content}), run, Group())


def changed(index: int, value: float) -> dict[str, Any]:
    weights = torch.arange(3.0)
    weights[index] = value
    return {"module": {"w": weights}}


def test_runs_of_the_same_numbers_do_not_differ(tmp_path: Path) -> None:
    nan = changed(1, float("nan"))
    for name in ("one", "other"):
        write_run(tmp_path / name, **nan)
    lines = (tmp_path / "other" / "metrics.jsonl").read_text().replace('"seconds_per_iteration": 0.5', '"mfu": 0.1')
    (tmp_path / "other" / "metrics.jsonl").write_text(lines)
    assert differences(tmp_path / "one", tmp_path / "other", LAST) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (changed(0, -0.0), f"{LAST}/{MODEL}: module: w: "),
        (changed(2, 2.0 + 2e-7), f"{LAST}/{MODEL}: module: w: "),
        ({"module": {"w": torch.arange(3.0).double()}}, "torch.float64 [3]"),
        ({"module": {"w": torch.arange(3.0), "v": torch.zeros(1)}}, "keys"),
        ({"random_states": [(2, "x")]}, f"{LAST}/{MODEL}: random_states: 0: 0: 1 there, 2 here"),
        ({"random_states": [(1, "x"), (1, "x")]}, "1 there, 2 here"),
        ({"loss": 0.5000000000000001}, "metrics.jsonl, line 1: "),
    ],
)
def test_a_single_bit_is_a_difference(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "other", **change)
    (told, *_) = differences(tmp_path / "one", tmp_path / "other", LAST)
    assert where in told


def test_a_line_more_and_a_file_more_are_differences(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_run(tmp_path / name)
    with (tmp_path / "other" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "split": "val", "loss": 1.0}\n')
    (tmp_path / "other" / str(LAST) / "more.pt").write_bytes(b"")
    more, only = differences(tmp_path / "one", tmp_path / "other", LAST)
    assert more == "metrics.jsonl: 1 lines there, 2 here" and "more.pt" in only


def test_an_announced_checkpoint_may_go_only_for_a_later_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for iteration in (2, 4):
        write_run(run, iteration)
    check_announced([run / "2"])
    check_announced([run / "2", run / "4"])
    with pytest.raises(Failed, match="6 was announced, and .*latest names 4"):
        check_announced([run / "6"])
    (run / "4" / MODEL).write_bytes(b"")
    with pytest.raises(Failed, match="4 is damaged: .*, and iteration 2 had been announced"):
        check_announced([run / "2"])


@dataclass
class Ended:
    """A rank with this exit status; one without goes on until it is killed."""

    status: int | None = 0

    def poll(self) -> int | None:
        return self.status

    def kill(self) -> None:
        self.status = -9 if self.status is None else self.status


def of(work: Path, start: Callable[[Path, Path], list[Ended]], rows: list[Row]) -> Torture:
    return Torture(start, work, LAST, random.Random(0), rows.append, patience_s=0.5, most_s=1.0)


def start_with(save: Path, log: Path, resumed: str = "", **content: Any) -> list[Ended]:
    """A run that is over at once."""
    run = save / "run"
    write_run(run, **content)
    log.write_text(f"{resumed}00:00:00 iteration 4/4 | loss 1\n00:00:00 saved {run}/4 in 0.1 s\n")
    return [Ended(), Ended()]


def test_a_run_that_ends_otherwise_badly_or_never_fails(tmp_path: Path) -> None:
    rows: list[Row] = []
    job = of(tmp_path, start_with, rows)
    assert job.undisturbed().save_s == 0.1
    assert job.disturbed(iter([])) == 1 and [row.moment for row in rows] == ["its end"]
    for number, (start, words) in enumerate(
        {
            lambda save, log: start_with(save, log, loss=0.6): "is not as",
            lambda save, log: start_with(save, log, **changed(0, 1.0)): "is not as",
            lambda save, log: [Ended(), Ended(1)]: "ended by itself",
            lambda save, log: [Ended(), Ended(None)]: "still running after 1 s",
            lambda save, log: [Ended()]: "0 runs in .* came to their end",
            lambda save, log: start_with(save, log, "resuming x at iteration 2\n"): "iteration 2, and None was due",
        }.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (tmp_path / "undisturbed").rename(folder / "undisturbed")
        with pytest.raises(Failed, match=words):
            of(folder, start, rows).disturbed(iter([]))
        (folder / "undisturbed").rename(tmp_path / "undisturbed")


def test_moments_are_of_every_kind_and_come_again_by_their_seed() -> None:
    pace = Pace(10.0, 1.0, 0.2)
    drawn = list(moments(random.Random(3), pace, lambda number: number < 12))
    assert sorted(moment.kind for moment in drawn) == sorted(MOMENTS * 2)
    assert drawn == list(islice(moments(random.Random(3), pace, lambda _: True), 12))
    longest = {"start-up": 10.0, "in a step": 1.0, "saving": 0.2, "announced": 2.0}
    assert all(0 <= moment.delay_s <= longest.get(moment.kind, 0) for moment in drawn)
    assert all(isinstance(moment, Moment) and 1 <= moment.nth <= 4 for moment in drawn)


def test_flags_are_checked_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rounds", "0", "--ranks", "0", "--base", str(tmp_path / "none.yaml"), "--keep", str(tmp_path)]
    assert torture.main(flags) == torture.MISTAKE
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "Traceback" not in said
    for part in ("--rounds 0: give 1 or more", "--ranks 0", "none.yaml: there is no such file", "is there already"):
        assert part in said
    with pytest.raises(SystemExit) as ended:
        torture.main(["--hours", "1", "--rounds", "2"])
    assert ended.value.code == torture.MISTAKE and "not allowed with" in capsys.readouterr().err
