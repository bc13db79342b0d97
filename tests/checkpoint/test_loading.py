"""Truths: averages come in place of what was trained and of nothing else; a run, one checkpoint of it and a chain of
adapters are read in the order in which they lie on each other.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cogvideox.checkpoint.inference import weights_to_sample_with
from cogvideox.checkpoint.loading import read_chain, read_starting_weights
from cogvideox.errors import UserError


def checkpoint(run: Path, name: str, ema: dict | None = None, ranks: int = 1, **extra: object) -> Path:
    folder = run / name
    folder.mkdir(parents=True)
    for rank in range(ranks):
        module = {"w": torch.full((2,), 1.0 + rank), "frozen": torch.zeros(3)}
        torch.save({"module": module, **extra}, folder / f"mp_rank_0{rank}_model_states.pt")
        if ema is not None:
            averages = {key: tensor + rank for key, tensor in ema.items()}
            torch.save({"module": averages}, folder / f"mp_rank_0{rank}_ema_states.pt")
    (run / "latest").write_text(name)
    return folder


def test_averages_replace_what_was_trained_and_nothing_else(tmp_path: Path) -> None:
    checkpoint(tmp_path, "7", ema={"w": torch.full((2,), 0.5)})
    raw, averaged = read_starting_weights(tmp_path), read_starting_weights(tmp_path, ema=True)
    assert raw.state_dict["w"].tolist() == [1.0, 1.0] and averaged.state_dict["w"].tolist() == [0.5, 0.5]
    assert averaged.state_dict.keys() == raw.state_dict.keys() and averaged.iteration == 7
    assert averaged.source.name == "mp_rank_00_ema_states.pt"


def test_each_model_parallel_rank_reads_its_own_averages(tmp_path: Path) -> None:
    checkpoint(tmp_path, "7", ema={"w": torch.full((2,), 0.5)}, ranks=2)
    second = read_starting_weights(tmp_path, 1, 2, ema=True)
    assert second.is_shard and second.state_dict["w"].tolist() == [1.5, 1.5]


@pytest.mark.parametrize("name", ["7", "7.incomplete", "release"])
def test_one_checkpoint_is_read_like_its_run(tmp_path: Path, name: str) -> None:
    """Not only the latest; its base and its iteration come along."""
    folder = checkpoint(tmp_path, name, adapters_only=True, base_weights="/base")
    checkpoint(tmp_path, "9")
    weights = read_starting_weights(folder)
    assert weights.source.parent == folder and weights.base == Path("/base")
    assert weights.iteration == (0 if name == "release" else 7)


def test_without_averages_the_error_names_the_optimizer_that_makes_them(tmp_path: Path) -> None:
    checkpoint(tmp_path, "7")
    with pytest.raises(UserError, match=r"mp_rank_00_ema_states\.pt: .*EmaAdamW"):
        read_starting_weights(tmp_path, ema=True)
    file = tmp_path / "other.pt"
    torch.save({"w": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="EmaAdamW"):
        read_starting_weights(file, ema=True)


@pytest.mark.parametrize("strange", [{"other": torch.zeros(2)}, {"w": torch.zeros(5)}])
def test_averages_of_another_model_are_refused(tmp_path: Path, strange: dict) -> None:
    checkpoint(tmp_path, "7", ema=strange)
    with pytest.raises(UserError, match=f"does not belong to mp_rank_00_model_states.pt.*{next(iter(strange))}"):
        read_starting_weights(tmp_path, ema=True)


def test_a_chain_starts_at_the_base_and_only_its_last_is_averaged(tmp_path: Path) -> None:
    averages = {"w": torch.full((2,), 0.5)}
    checkpoint(tmp_path / "base", "1", ema=averages)
    checkpoint(tmp_path / "first", "2", ema=averages, adapters_only=True, base_weights=str(tmp_path / "base"))
    checkpoint(tmp_path / "second", "3", ema=averages, adapters_only=True, base_weights=str(tmp_path / "first"))
    chain = read_chain(tmp_path / "second", ema=True)
    assert [weights.iteration for weights in chain] == [1, 2, 3]
    assert [weights.state_dict["w"][0].item() for weights in chain] == [1.0, 1.0, 0.5]


def test_a_model_file_is_read_like_its_folder(tmp_path: Path) -> None:
    """With its base, its iteration and its averages, whatever `latest` says."""
    checkpoint(tmp_path / "base", "1")
    folder = checkpoint(tmp_path / "top", "3", ema={"w": torch.ones(2)}, adapters_only=True, base_weights="BASE")
    file = folder / "mp_rank_00_model_states.pt"
    torch.save(torch.load(file) | {"base_weights": str(tmp_path / "base/1" / file.name)}, file)
    (folder / "latest").write_text("elsewhere")
    chain = read_chain(file)
    assert [weights.source for weights in chain] == [tmp_path / "base/1" / file.name, file]
    assert [weights.iteration for weights in chain] == [1, 3]
    assert read_starting_weights(file, ema=True).source.name == "mp_rank_00_ema_states.pt"


def test_a_file_that_is_a_part_is_taken_with_the_others(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "7", ranks=2)
    second = read_starting_weights(folder / "mp_rank_00_model_states.pt", 1, 2)
    assert second.is_shard and second.state_dict["w"].tolist() == [2.0, 2.0]
    with pytest.raises(UserError, match="cut for model_parallel_size 2"):
        read_starting_weights(folder / "mp_rank_01_model_states.pt")


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
def test_adapters_that_stand_on_themselves_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, under in zip(names, (*names[1:], names[-1]), strict=True):
        checkpoint(tmp_path / name, "1", ema={}, adapters_only=True, base_weights=str(tmp_path / under))
    with pytest.raises(UserError, match=f"{tmp_path / names[-1]}.* holds adapters for the weights in .*or the same"):
        read_chain(tmp_path / "a")


def test_adapters_without_a_base_are_sampled_on_the_one_that_is_given(tmp_path: Path) -> None:
    checkpoint(tmp_path / "base", "1")
    name = "model.diffusion_model.transformer.layers.0.attention.dense.matrix_A.0"
    file = tmp_path / "adapters.pt"
    torch.save({"module": {name: torch.zeros(2, 3)}}, file)
    chain = weights_to_sample_with(file, False, tmp_path / "base")
    assert [list(weights.state_dict) for weights in chain] == [["w", "frozen"], [name]]
    with pytest.raises(UserError, match="holds adapters alone: name the weights"):
        weights_to_sample_with(file, False, None)
    with pytest.raises(UserError, match="holds all weights, not adapters alone"):
        weights_to_sample_with(tmp_path / "base", False, tmp_path / "base")
