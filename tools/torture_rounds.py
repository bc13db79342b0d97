"""A run that is killed again and again, and what must hold of it: at the end it is the run that nobody disturbed.

For tools/torture.py, which starts it from nothing, and for its test, which has a faster way.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from cogvideox.checkpoint.choosing import checkpoints_of
from cogvideox.checkpoint.manifest import fault_of
from tools.torture_differences import differences

LOOK_S = 0.001  # a rename is over in less: some are seen only just after
INCOMPLETE = ".incomplete"
START_UP, STEP, SAVING, NAMED, LATEST, ANNOUNCED = MOMENTS = (
    "start-up", "in a step", "saving", "<n> named", "latest moved", "announced"
)  # fmt: skip
STEPPED = re.compile(r"\biteration +(\d+)/\d+ \|")
SAVED = re.compile(r"\bsaved (.+/(\d+)) in ([\d.]+) s$", re.MULTILINE)
RESUMING = re.compile(r"\bresuming (.+) at iteration (\d+)")
SAID = 4000  # letters of a log's end that are shown


class Failed(Exception):
    """What did not hold."""


class Rank(Protocol):
    """A process of a run."""

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""

    def kill(self) -> None:
        """As `kill -9` does."""


# Starts a run, with `--resume auto`, that saves below the first path; its output, in order, goes to the second.
Start = Callable[[Path, Path], Sequence[Rank]]


class Pace(NamedTuple):
    """Seconds that a start, an iteration and a save take."""

    start_s: float
    step_s: float
    save_s: float


class Moment(NamedTuple):
    """`delay_s` after the `nth` of what `kind` names, since the start.

    For `start-up` after the start itself, at the end of the first iteration at the latest.
    """

    kind: str
    nth: int
    delay_s: float


class Row(NamedTuple):
    """One start and its end."""

    lap: int
    moment: str
    killed: str
    resumed: int | None
    reached: int
    left: str
    others_s: float | None  # how long the ranks that were not killed took to end


@dataclass
class Watch:
    """What a start has done so far, by its log and by what lies on the disk."""

    save: Path
    log: Path
    began: float = field(default_factory=time.monotonic)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MOMENTS, 0))
    text: str = ""
    first_step_s: float | None = None  # after the start
    _read: int = 0
    _there: set[str] | None = None
    _latest: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Count what is new since the last look."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        if data:
            self._read += len(data)
            self.text += data.decode(errors="replace")
            self.counts[STEP] = len(STEPPED.findall(self.text))
            self.counts[ANNOUNCED] = len(SAVED.findall(self.text))
            if self.first_step_s is None and self.counts[STEP]:
                self.first_step_s = time.monotonic() - self.began
        there = set(names_below(self.save))
        latest = [(run / "latest").read_text() for run in runs_below(self.save) if (run / "latest").is_file()]
        new = there - self._there if self._there is not None else set()
        self.counts[SAVING] += sum(name.endswith(INCOMPLETE) for name in new)
        self.counts[NAMED] += sum(name.rpartition("/")[2].isdigit() for name in new)
        self.counts[LATEST] += self._there is not None and latest != self._latest
        self._there, self._latest = there, latest

    def has_come(self, moment: Moment) -> bool:
        """Whether it is time; waits for the rest of it."""
        if moment.kind == START_UP:
            return time.monotonic() - self.began >= moment.delay_s or self.counts[STEP] > 0
        if self.counts[moment.kind] < moment.nth:
            return False
        time.sleep(moment.delay_s)
        return True

    @property
    def saved(self) -> list[Path]:
        """The checkpoints that have been announced."""
        return [Path(path) for path, _, _ in SAVED.findall(self.text)]

    @property
    def resumed(self) -> int | None:
        """The iteration that it went on from."""
        found = RESUMING.search(self.text)
        return int(found[2]) if found else None

    @property
    def reached(self) -> int:
        """The last iteration that was logged, of this start; that of the start before any."""
        return int((STEPPED.findall(self.text) or [self.resumed or 0])[-1])


def runs_below(save: Path) -> list[Path]:
    """The folders of runs."""
    return sorted(path for path in save.iterdir() if path.is_dir()) if save.is_dir() else []


def names_below(save: Path) -> Iterator[str]:
    """`<run>/<checkpoint>`, incomplete ones too."""
    for run in runs_below(save):
        yield from (f"{run.name}/{name}" for name in os.listdir(run) if name[0].isdigit())


def moments(draws: random.Random, pace: Pace, goes_on: Callable[[int], bool]) -> Iterator[Moment]:
    """Of every kind equally often, in random order, as long as `goes_on(how many there were)`."""
    number, kinds = 0, list[str]()
    while goes_on(number):
        kinds = kinds or draws.sample(MOMENTS, len(MOMENTS))
        kind = kinds.pop()
        longest = {START_UP: pace.start_s, STEP: pace.step_s, SAVING: pace.save_s, ANNOUNCED: 2 * pace.step_s}
        nth = draws.randint(1, 4) if kind == STEP else 1
        yield Moment(kind, nth, draws.uniform(0, longest.get(kind, 0)))
        number += 1


@dataclass
class Torture:
    """A run of `last` iterations on as many ranks as `start` starts, below `work`.

    A rank that survives another for `patience_s` is killed too; a start that takes `most_s` has hung.
    """

    start: Start
    work: Path
    last: int
    draws: random.Random
    tell: Callable[[Row], None]
    patience_s: float = 15.0
    most_s: float = 600.0
    keeps: bool = False

    def undisturbed(self) -> Pace:
        """The run to compare with, and how fast it was. Raises Failed."""
        watch, _ = self._until_end(self.work / "undisturbed", "undisturbed", None)
        starting = watch.first_step_s or 0.0
        steps = max(1, watch.counts[STEP] - 1)
        saves = [float(seconds) for _, _, seconds in SAVED.findall(watch.text)]
        if not saves or watch.reached != self.last:
            raise Failed(f"the undisturbed run did not save, or not reach iteration {self.last}:\n{watch.text[-SAID:]}")
        return Pace(starting, (time.monotonic() - watch.began - starting) / steps, max(0.05, sum(saves) / len(saves)))

    def disturbed(self, kills: Iterator[Moment]) -> int:
        """Kill runs until `kills` is used up, and let the last one reach its end; how many runs that took.

        Raises Failed: one of them is not as the undisturbed one, or lost a checkpoint.
        """
        moment, lap = next(kills, None), 1
        while True:
            save, announced, starts, is_over = self.work / f"lap-{lap}", list[Path](), 0, False
            while not is_over:
                starts += 1
                due = newest_on_disk(save)
                watch, row = self._until_end(save, f"lap-{lap}-{starts}", moment)
                self.tell(row._replace(lap=lap))
                is_over = not row.killed
                moment = moment if is_over else next(kills, None)
                if watch.resumed != due and (watch.resumed is not None or watch.counts[STEP]):
                    raise Failed(f"went on from iteration {watch.resumed}, and {due} was due")
                announced += watch.saved
                check_announced(announced)
            self._compare(save)
            if moment is None:
                return lap
            lap += 1

    def _compare(self, save: Path) -> None:
        ends = [run for run in runs_below(save) if (run / str(self.last)).is_dir()]
        if len(ends) != 1:
            raise Failed(f"{len(ends)} runs in {save} came to their end")
        (calm,) = runs_below(self.work / "undisturbed")
        if differing := differences(calm, ends[0], self.last):
            raise Failed(f"{ends[0]} is not as {calm}:\n  " + "\n  ".join(differing))
        if not self.keeps:
            shutil.rmtree(save)

    def _until_end(self, save: Path, name: str, moment: Moment | None) -> tuple[Watch, Row]:
        """One start, up to the moment or to its own end. Raises Failed: it ended badly, or not at all."""
        log = self.work / f"{name}.log"
        log.touch()
        watch = Watch(save, log)
        watch.look()
        ranks = self.start(save, log)
        killed, others_s = "", None
        try:
            while any(rank.poll() is None for rank in ranks):
                watch.look()
                if any(rank.poll() for rank in ranks):
                    self._wait(ranks)
                    watch.look()
                    raise Failed(f"a rank ended by itself:\n{watch.text[-SAID:]}")
                if moment is not None and watch.has_come(moment):
                    killed, others_s = self._kill(ranks)
                    break
                if time.monotonic() - watch.began > self.most_s:
                    raise Failed(f"still running after {self.most_s:.0f} s:\n{watch.text[-SAID:]}")
                time.sleep(LOOK_S)
        finally:
            for rank in ranks:
                rank.kill()
            self._wait(ranks)
        watch.look()
        if not killed and any(rank.poll() for rank in ranks):
            raise Failed(f"a rank ended by itself:\n{watch.text[-SAID:]}")
        kind = f"{moment.kind} {moment.nth}" if moment and killed else "its end"
        return watch, Row(0, kind, killed, watch.resumed, watch.reached, left_in(save), others_s)

    def _kill(self, ranks: Sequence[Rank]) -> tuple[str, float | None]:
        """A random rank, or all; and how long the others took to end, None if they had to be killed too."""
        number = self.draws.randrange(len(ranks) + 1)
        victims = ranks if number == len(ranks) else [ranks[number]]
        for rank in victims:
            rank.kill()
        others_s = self._wait(ranks)
        if all(rank.poll() == 0 for rank in ranks):
            return "", others_s  # it was over just before
        return ("all" if len(victims) == len(ranks) else f"rank {number}"), others_s

    def _wait(self, ranks: Sequence[Rank]) -> float | None:
        began = time.monotonic()
        while any(rank.poll() is None for rank in ranks):
            if time.monotonic() - began > self.patience_s:
                return None
            time.sleep(0.01)
        return time.monotonic() - began


def newest_on_disk(save: Path) -> int | None:
    """What `latest` of the run that saved last names; where it was killed before it had one, its whole checkpoint."""
    pointers = [run / "latest" for run in runs_below(save) if (run / "latest").is_file()]
    if pointers:
        return int(max(pointers, key=lambda path: path.stat().st_mtime_ns).read_text())
    whole = [path for run in runs_below(save) for path in checkpoints_of(run) if fault_of(path) is None]
    return max((int(path.name) for path in whole), default=None)


def check_announced(announced: Sequence[Path]) -> None:
    """Raises Failed: the newest checkpoint that was announced is gone or damaged, and so are those after it."""
    for run in {path.parent for path in announced}:
        newest = max(int(path.name) for path in announced if path.parent == run)
        named = (run / "latest").read_text()
        if int(named) < newest:
            raise Failed(f"{run / str(newest)} was announced, and {run / 'latest'} names {named}")
        if fault := fault_of(run / named):
            raise Failed(f"{run / named} {fault}, and iteration {newest} had been announced")


def left_in(save: Path) -> str:
    """Where `latest` points and what an interrupted save left, in words."""
    halves = [name.rpartition("/")[2] for name in names_below(save) if not name.rpartition("/")[2].isdigit()]
    return ", ".join([f"latest {newest_on_disk(save) or '–'}", *sorted(halves)])
