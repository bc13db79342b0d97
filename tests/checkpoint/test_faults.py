"""Truths: a save that fails or is cut off at any of its file operations leaves a whole checkpoint under `latest`."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.checkpoint import durable, saving
from cogvideox.checkpoint.choosing import checkpoints_of
from cogvideox.checkpoint.manifest import fault_of
from cogvideox.checkpoint.retention import Retention
from cogvideox.checkpoint.safe_loading import load_safely
from cogvideox.parallel import Group
from tests.checkpoint.faulty_disk import (
    CRASH_BEFORE,
    CRASH_HALFWAY,
    CRASHES,
    KINDS,
    SHORT,
    Crash,
    FaultyDisk,
    installed,
    path_of,
)
from tests.checkpoint.ranks_in_threads import Threads, Together

ALONE = Group()
WORDS = ("No space left", "Input/output", "bytes could be written")
FILES = "rank_{}_model_states.pt"


def taken(iteration: int, value: float, rank: int = 0) -> saving.Snapshot:
    """A rank's part of a checkpoint whose tensors are all of `value`."""
    content = {"w": torch.full((3,), value), "exp_avg": torch.full((2000,), value), "iteration": iteration}
    return saving.Snapshot(iteration, {FILES.format(rank): content})


def store(folder: Path, iteration: int, value: float, limit: int | None = None) -> None:
    retention = Retention(limit)
    saving.store(taken(iteration, value), folder, ALONE, retire=lambda: retention.apply(folder))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests cut off is the process, not the power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@dataclass(frozen=True)
class Case:
    """A run's folder, whose `latest` is `before`; a save of `iteration` with value 9 begins in it. `values`: those that
    each iteration may have afterwards.
    """

    prepare: Callable[[Path], None]
    before: int
    iteration: int
    limit: int | None = None
    values: dict[int, set[float]] = field(default_factory=dict)


def none(folder: Path) -> None:
    """Nothing yet."""


def one(folder: Path) -> None:
    store(folder, 1, 1.0)


def two(folder: Path) -> None:
    store(folder, 1, 1.0)
    store(folder, 2, 2.0)


def named_but_not_latest(folder: Path) -> None:
    """A save of 2 had its name already and was cut off before `latest` moved."""
    two(folder)
    (folder / "latest").write_text("1")


def halves(folder: Path) -> None:
    store(folder, 1, 1.0)
    for name in ("2.incomplete", "0.deleted"):
        (folder / name).mkdir()
        (folder / name / FILES.format(0)).write_bytes(b"half")
    (folder / "latest.incomplete").write_text("2")


CASES = {
    "the first save": Case(none, 0, 1, values={1: {9.0}}),
    "the second save": Case(one, 1, 2, values={1: {1.0}, 2: {9.0}}),
    "beside halves": Case(halves, 1, 2, values={1: {1.0}, 2: {9.0}}),
    "the oldest goes": Case(two, 2, 3, limit=1, values={1: {1.0}, 2: {2.0}, 3: {9.0}}),
    "over one that is not the latest": Case(named_but_not_latest, 1, 2, values={1: {1.0}, 2: {2.0, 9.0}}),
    "over the latest": Case(two, 2, 2, values={1: {1.0}, 2: {2.0, 9.0}}),
}


def value_in(checkpoint: Path) -> float:
    """Of all its tensors: they must be of one save."""
    assert fault_of(checkpoint) is None
    contents = [load_safely(path) for path in checkpoint.glob(FILES.format("*"))]
    (value,) = {value for content in contents for value in (*content["w"].tolist(), *content["exp_avg"].tolist())}
    assert {content["iteration"] for content in contents} == {int(checkpoint.name)}
    return value


def check(folder: Path, case: Case, what: str) -> None:
    """What `latest` names is whole, and of a value that it may have; the first save may have left nothing."""
    latest = folder / "latest"
    if case.prepare is none and not latest.exists():
        return
    assert latest.exists(), what
    named = int(latest.read_text())
    assert value_in(folder / str(named)) in case.values[named], what
    assert named >= case.before, what


def operations(case: Case, folder: Path) -> list[str]:
    """Of the whole save."""
    folder.mkdir()
    case.prepare(folder)
    with installed(FaultyDisk()) as disk:
        store(folder, case.iteration, 9.0, case.limit)
    return disk.done


# Where a kind of fault shows what no other does: a crash before one operation is a crash after the one before it.
WHERE = {SHORT: ("write",), CRASH_BEFORE: ("rename",), CRASH_HALFWAY: ("write", "open", "delete")}


def faults(done: list[str]) -> Iterator[tuple[int, str]]:
    """Each operation with each way in which it can fail."""
    for number, operation in enumerate(done):
        name = operation.split()[0]
        yield from ((number, kind) for kind in KINDS if kind not in WHERE or name in WHERE[kind])


@pytest.mark.parametrize("name", CASES)
def test_a_fault_at_any_operation_leaves_a_whole_checkpoint_and_the_next_save_works(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    done = operations(case, tmp_path / "counted")
    assert {operation.split()[0] for operation in done} >= {"make", "open", "write", "fsync", "rename"}
    for number, kind in faults(done):
        folder = tmp_path / f"{number}-{kind.replace(' ', '-')}"
        folder.mkdir()
        case.prepare(folder)
        what = f"{kind} at operation {number}, {done[number]}"
        with installed(FaultyDisk(number, kind)) as disk:
            if kind in CRASHES:
                with pytest.raises(Crash):
                    store(folder, case.iteration, 9.0, case.limit)
            else:
                try:
                    store(folder, case.iteration, 9.0, case.limit)
                except saving.SaveFailed as error:
                    assert any(each in str(error) for each in (str(folder), *WORDS)), what
        assert disk.failed is not None, what
        if kind in CRASHES:
            saving.tidy(folder)  # as a restart does
        check(folder, case, what)
        store(folder, 4, 4.0)
        assert (folder / "latest").read_text() == "4" and value_in(folder / "4") == 4.0, what
        assert all(fault_of(path) is None for path in checkpoints_of(folder)), what
        left = {path.name for path in folder.iterdir()}
        assert case.prepare is halves or not any(each.endswith(".incomplete") for each in left), (what, left)
        saving.tidy(folder)
        assert all(path.name.isdigit() or path.name == "latest" for path in folder.iterdir()), what
        assert (folder / "latest").read_text() == "4"


@pytest.mark.parametrize("name", ["the second save", "over one that is not the latest", "over the latest"])
def test_a_crash_while_an_interrupted_save_is_tidied_up_loses_nothing(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    done = operations(case, tmp_path / "counted")
    for number in (number for number, operation in enumerate(done) if not operation.startswith("write")):
        for again in range(20):
            folder = tmp_path / f"{number}-{again}"
            folder.mkdir()
            case.prepare(folder)
            with installed(FaultyDisk(number, CRASH_BEFORE)), pytest.raises(Crash):
                store(folder, case.iteration, 9.0)
            with installed(FaultyDisk(again, CRASH_HALFWAY)) as disk:
                try:
                    saving.tidy(folder)
                except Crash:
                    pass
            saving.tidy(folder)
            check(folder, case, f"crash at operation {number}, {done[number]}, then at {disk.failed} of tidying up")
            if disk.failed is None:
                break
        else:
            raise AssertionError("tidying up takes too many operations to try all")


class Watching(FaultyDisk):
    """Asserts that what gets a name has reached the disk: a power cut keeps names and loses content otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.not_synced: set[Path] = set()
        self.renamed = 0

    def do(self, name: str, path: Path, operation: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if name in ("open", "make") and not path.name.endswith(".incomplete"):
            self.not_synced |= {path.parent}
        if name == "write":
            self.not_synced |= {path}
        if name == "fsync":
            self.not_synced -= {path}
        if name == "rename":
            source = path.with_name(path.name + ".incomplete")
            pending = {each for each in self.not_synced if each.is_relative_to(source)}
            if path.name == "latest":
                pending |= self.not_synced & {path.parent}
            assert not pending, f"{path} gets its name before {pending} are on the disk"
            self.not_synced |= {path.parent}
            self.renamed += 1
        return super().do(name, path, operation, half)


@pytest.mark.parametrize("name", CASES)
def test_nothing_gets_its_name_before_its_content_is_on_the_disk(tmp_path: Path, name: str) -> None:
    CASES[name].prepare(tmp_path)
    with installed(Watching()) as disk:
        store(tmp_path, CASES[name].iteration, 9.0, CASES[name].limit)
    assert disk.renamed >= 2
    assert tmp_path not in disk.not_synced, "the last rename is not on the disk"


def test_a_file_is_synced_after_its_last_write(tmp_path: Path) -> None:
    with installed(FaultyDisk()) as disk, (tmp_path / "other").open("wb") as other:
        durable.write_file(tmp_path / "file", lambda file: [file.write(b"x") for _ in range(3)])
        assert path_of(other.fileno()) == tmp_path / "other"
    assert disk.done == ["open file", *["write file"] * 3, "fsync file"]


def store_on_two(folder: Path, iteration: int, value: float) -> list[str | None]:
    """How the save went on each rank: None, or what SaveFailed said."""
    together, outcomes = Together(2), ["never came back"] * 2

    def rank(number: int) -> None:
        try:
            saving.store(taken(iteration, value, number), folder, Threads(number, together))
            outcomes[number] = None  # type: ignore[call-overload]
        except saving.SaveFailed as error:
            outcomes[number] = str(error)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", SHORT])
def test_a_disk_that_fails_one_rank_fails_the_save_on_both(tmp_path: Path, kind: str) -> None:
    assert store_on_two(tmp_path, 1, 1.0) == [None, None]
    with installed(FaultyDisk(only="rank_1")) as disk:
        assert store_on_two(tmp_path, 2, 2.0) == [None, None]
    writes = [number for number, operation in enumerate(disk.done) if operation.startswith("write")]
    assert len(writes) > 3
    for number in writes:
        with installed(FaultyDisk(number, kind, only="rank_1")):
            first_says, second_says = store_on_two(tmp_path, 3, 3.0)
        assert first_says is not None and first_says == second_says
        assert ("bytes could be written" if kind == SHORT else os.strerror(getattr(errno, kind))) in first_says
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "latest"]
        assert (tmp_path / "latest").read_text() == "2" and value_in(tmp_path / "2") == 2.0
    assert store_on_two(tmp_path, 3, 3.0) == [None, None] and value_in(tmp_path / "3") == 3.0
