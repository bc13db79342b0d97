"""Truths: `latest` names only whole folders; random states load without code; what DeepSpeed gives is written by us."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cogvideox.checkpoint import durable, saving
from cogvideox.checkpoint.loading import read_starting_weights
from cogvideox.checkpoint.manifest import Manifest, fault_of
from cogvideox.errors import UserError
from cogvideox.parallel import Group

ALONE = Group()


def written(folder: Path, name: str, value: float = 1.0, shards: int = 1, **extra: object) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    for rank in range(shards):
        content = {"module": {"w": torch.full((2,), value + rank)}, **extra}
        torch.save(content, path / f"mp_rank_0{rank}_model_states.pt")
    return path


def published(folder: Path, number: int, value: float = 1.0) -> Path:
    incomplete = written(folder, f"{number}.incomplete", value)
    saving.publish(incomplete, folder / str(number), Manifest.of(incomplete, number, 1))
    return folder / str(number)


def taken(iteration: int, value: float) -> saving.Snapshot:
    content = {"module": {"w": torch.full((2,), value)}}
    return saving.Snapshot(iteration, {"mp_rank_00_model_states.pt": content})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publishing_renames_and_then_points_latest(tmp_path: Path) -> None:
    checkpoint = published(tmp_path, 7)
    assert names(tmp_path) == ["7", "latest"] and (tmp_path / "latest").read_text() == "7"
    assert fault_of(checkpoint) is None


def test_publishing_again_replaces_the_folder(tmp_path: Path) -> None:
    published(tmp_path, 7, 1.0)
    published(tmp_path, 7, 5.0)
    assert read_starting_weights(tmp_path).state_dict["w"].tolist() == [5.0, 5.0]
    assert names(tmp_path) == ["7", "latest"]


def test_a_stored_snapshot_is_a_whole_checkpoint(tmp_path: Path) -> None:
    retired = []
    final = saving.store(taken(3, 2.0), tmp_path, ALONE, retire=lambda: retired.append(1))
    assert final == tmp_path / "3" and fault_of(final) is None and retired == [1]
    assert read_starting_weights(tmp_path).state_dict["w"].tolist() == [2.0, 2.0]
    assert Manifest.read(final).iteration == 3


def test_copies_do_not_follow_the_training() -> None:
    weight = torch.zeros(3)
    shot = saving.Snapshot(1, {"a": {"w": weight, "list": [weight], "text": "x"}})
    copies = shot.in_host_memory()
    weight += 1
    assert copies.contents["a"]["w"].tolist() == [0.0] * 3 and copies.contents["a"]["list"][0].tolist() == [0.0] * 3
    assert shot.size() == copies.size() == 24


def test_a_full_disk_is_told_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving.store(taken(1, 1.0), tmp_path, ALONE)
    usage = type("usage", (), {"free": saving.SPARE_BYTES - 1})
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(saving.SaveFailed, match="0.0 MiB are to be written, 64.0 MiB to spare; .* has 64"):
        saving.store(taken(2, 2.0), tmp_path, ALONE)
    assert names(tmp_path) == ["1", "latest"] and read_starting_weights(tmp_path).iteration == 1


def test_what_an_interrupted_save_left_is_put_in_order(tmp_path: Path) -> None:
    published(tmp_path, 1)
    published(tmp_path, 2).rename(tmp_path / "2.replaced")  # between the two renames of a save of 2
    written(tmp_path, "3.incomplete")
    written(tmp_path, "0.deleted")
    (tmp_path / "latest.incomplete").write_text("3")
    saving.tidy(tmp_path)
    assert names(tmp_path) == ["1", "2", "latest"] and fault_of(tmp_path / "2") is None


def test_a_folder_that_cannot_be_deleted_is_in_no_saves_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody has a file of it open on NFS."""
    real = shutil.rmtree

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    published(tmp_path, 1)
    written(tmp_path, "1.incomplete")
    written(tmp_path, "1.incomplete.deleted")
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    saving.store(taken(1, 9.0), tmp_path, ALONE)
    saving.tidy(tmp_path)
    assert read_starting_weights(tmp_path).state_dict["w"].tolist() == [9.0, 9.0] and fault_of(tmp_path / "1") is None
    left = ["1", "1.incomplete.deleted", "1.incomplete.deleted-2", "1.replaced.deleted", "latest"]
    assert names(tmp_path) == left
    monkeypatch.setattr(shutil, "rmtree", real)
    saving.tidy(tmp_path)
    assert names(tmp_path) == ["1", "latest"]


def test_a_long_file_is_synced_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(durable, "SYNC_BYTES", 100)
    monkeypatch.setattr(durable.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    durable.write_file(tmp_path / "file", lambda file: [file.write(bytes(40)) for _ in range(7)])
    assert synced == [120, 240, 280]


def test_random_states_load_without_running_code_and_restore_the_draws(tmp_path: Path) -> None:
    torch.save(saving.random_state(), tmp_path / "state.pt")
    drawn = (random.random(), np.random.rand(), torch.rand(()).item())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == drawn


def test_each_model_parallel_rank_reads_its_own_file(tmp_path: Path) -> None:
    written(tmp_path, "3", shards=2)
    (tmp_path / "latest").write_text("3")
    second = read_starting_weights(tmp_path, model_rank=1, model_size=2)
    assert second.is_shard and second.iteration == 3 and second.state_dict["w"].tolist() == [2.0, 2.0]
    with pytest.raises(UserError, match="model_parallel_size 2"):
        read_starting_weights(tmp_path, model_rank=0, model_size=4)


def test_adapters_name_their_base(tmp_path: Path) -> None:
    written(tmp_path, "3", adapters_only=True, base_weights="/base")
    (tmp_path / "latest").write_text("3")
    assert read_starting_weights(tmp_path).base == Path("/base")


class Writer:
    """DeepSpeed's writer, which must not write."""

    def save(self, state_dict: Any, path: str) -> None:
        raise AssertionError(path)

    makedirs = save


class Engine:
    """Gives one file as DeepSpeed does."""

    basic_optimizer = None

    def __init__(self) -> None:
        self.checkpoint_engine = Writer()

    def _copy_recovery_script(self, path: str) -> None:
        raise AssertionError(path)

    def save_checkpoint(self, folder: str, tag: str, client_state: dict, **_settings: object) -> None:
        self.checkpoint_engine.makedirs(folder, exist_ok=True)  # type: ignore[call-arg]
        self._copy_recovery_script(folder)
        content = {"module": {"w": torch.full((2,), float(client_state["iteration"]))}, **client_state}
        self.checkpoint_engine.save(state_dict=content, path=f"{folder}/{tag}/mp_rank_00_model_states.pt")

    def zero_optimization_partition_weights(self) -> bool:
        return False


class Refusing:
    """A gate that lets nothing but iteration 1 through."""

    def record(self, engine: object, averages: object) -> dict[str, Any]:
        return {"recorded": True}

    def check(self, folder: Path) -> None:
        assert (folder / "mp_rank_00_live_states.pt").exists()
        assert not (folder.parent / folder.name.split(".")[0]).exists()
        if not folder.name.startswith("1."):
            raise saving.UntrustedCheckpoint("it is not what was trained")


def saved(folder: Path, iteration: int) -> None:
    gate = Refusing()
    saving.store(saving.snapshot(Engine(), iteration, {}, adapters_only=False, gate=gate), folder, ALONE, gate)


def test_what_the_gate_refuses_is_marked_and_latest_stays(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for _ in range(2):  # a run that is resumed may fail at the same iteration again
        with pytest.raises(UserError, match=r"(?s)it is not what was trained.*2\.not_trusted"):
            saved(tmp_path, 2)
    assert names(tmp_path) == ["1", "2.not_trusted", "latest"]
    assert read_starting_weights(tmp_path).iteration == 1
