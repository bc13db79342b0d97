"""Truths: `latest` names only whole folders, whatever step of publishing fails; random states load without code."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideox.checkpoint import saving
from cogvideox.checkpoint.loading import read_starting_weights
from cogvideox.errors import UserError


def written(folder: Path, name: str, value: float = 1.0, shards: int = 1, **extra: object) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    for rank in range(shards):
        torch.save(
            {"module": {"w": torch.full((2,), value + rank)}, **extra}, path / f"mp_rank_0{rank}_model_states.pt"
        )
    return path


def test_publishing_renames_and_then_points_latest(tmp_path: Path) -> None:
    saving.publish(written(tmp_path, "7.incomplete"), tmp_path / "7")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "latest"]
    assert (tmp_path / "latest").read_text() == "7"


def test_publishing_again_replaces_the_folder(tmp_path: Path) -> None:
    saving.publish(written(tmp_path, "7.incomplete", 1.0), tmp_path / "7")
    saving.publish(written(tmp_path, "7.incomplete", 5.0), tmp_path / "7")
    assert read_starting_weights(tmp_path).state_dict["w"].tolist() == [5.0, 5.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "latest"]


@pytest.mark.parametrize("fails_at", range(9))
def test_a_failure_at_any_system_call_leaves_the_earlier_checkpoint_loadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    saving.publish(written(tmp_path, "1.incomplete", 1.0), tmp_path / "1")
    incomplete = written(tmp_path, "2.incomplete", 2.0)
    calls = iter(range(1000))

    def failing(real):  # noqa: ANN001, ANN202
        def call(*args: object, **kwargs: object) -> object:
            if next(calls) == fails_at:
                raise OSError("injected")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(os, "replace", failing(os.replace))
        patch.setattr(Path, "rename", failing(Path.rename))
        try:
            saving.publish(incomplete, tmp_path / "2")
        except OSError:
            pass
    loaded = read_starting_weights(tmp_path)
    assert loaded.state_dict["w"].tolist() == [float(loaded.iteration)] * 2 and loaded.iteration in (1, 2)


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


class Engine:
    """Writes one file where DeepSpeed would."""

    basic_optimizer = None

    def save_checkpoint(self, folder: str, tag: str, client_state: dict, **_settings: object) -> None:
        written(Path(folder), tag, float(client_state["iteration"]))

    def zero_optimization_partition_weights(self) -> bool:
        return False


class Refusing:
    """A gate that lets nothing but iteration 1 through."""

    def record(self, engine: object, folder: Path, averages: object) -> None:
        (folder / "recorded").touch()

    def check(self, folder: Path) -> None:
        assert (folder / "recorded").exists() and not (folder.parent / folder.name.split(".")[0]).exists()
        if not folder.name.startswith("1."):
            raise saving.UntrustedCheckpoint("it is not what was trained")


def test_what_the_gate_refuses_is_marked_and_latest_stays(tmp_path: Path) -> None:
    saving.save_checkpoint(Engine(), tmp_path, 1, {}, adapters_only=False, gate=Refusing())
    for _ in range(2):  # a run that is resumed may fail at the same iteration again
        with pytest.raises(UserError, match=r"(?s)it is not what was trained.*2\.not_trusted"):
            saving.save_checkpoint(Engine(), tmp_path, 2, {}, adapters_only=False, gate=Refusing())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.not_trusted", "latest"]
    assert read_starting_weights(tmp_path).iteration == 1
