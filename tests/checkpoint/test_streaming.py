"""Weight files written tensor by tensor.

Truths checked: reference (torch's and safetensors' own readers, Python's zip check), identity (little memory).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cogvideox.checkpoint.streaming import Planned, in_shards, write_safetensors, write_torch
from tests.checkpoint.files import assert_equal

STATE = {
    "flags": torch.tensor([True, False, True]),
    "odd": torch.arange(7, dtype=torch.float16),
    "a.weight": torch.randn(3, 5, 2).transpose(0, 1),
    "b": torch.randn(4, 6).bfloat16()[:, 1:3],
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "steps": torch.arange(5),
}


def plan_of(state: dict[str, torch.Tensor]) -> list[Planned]:
    return [Planned(name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()]


def test_safetensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", plan_of(STATE), STATE.items(), {"format": "pt", "who": "me"})
    assert_equal(load_file(tmp_path / "w.safetensors"), STATE)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "who": "me"}


@pytest.mark.parametrize("mmap", [False, True])
def test_torch(tmp_path: Path, mmap: bool) -> None:
    beside: dict[str, Any] = {"iteration": 3, "base_weights": "/a", "adapters_only": True, "nothing": None}
    write_torch(tmp_path / "w.pt", plan_of(STATE), STATE.items(), "module", beside)
    content = torch.load(tmp_path / "w.pt", weights_only=True, mmap=mmap)
    assert_equal(content.pop("module"), STATE)
    assert content == beside
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        assert archive.testzip() is None


def test_torch_files_hold_what_torch_save_writes(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "theirs.pt")
    write_torch(tmp_path / "ours.pt", plan_of(STATE), STATE.items(), "state_dict")
    ours, theirs = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("ours", "theirs"))
    assert_equal(ours["state_dict"], theirs["state_dict"])
    with zipfile.ZipFile(tmp_path / "ours.pt") as archive:
        for info in archive.infolist():
            with archive.open(info) as record:
                assert record._orig_compress_start % 64 == 0, info.filename  # type: ignore[attr-defined]


@pytest.mark.parametrize("write", ["safetensors", "torch"])
def test_what_was_not_planned_is_our_own_mistake(tmp_path: Path, write: str) -> None:
    def attempt(plan: list[Planned], tensors: list[tuple[str, torch.Tensor]]) -> None:
        if write == "torch":
            write_torch(tmp_path / "w", plan, tensors, "module")
        else:
            write_safetensors(tmp_path / "w", plan, tensors, {})

    plan = [Planned("a", (2,), torch.float32), Planned("b", (2,), torch.float32)]
    with pytest.raises(AssertionError, match="1 planned tensors did not come: b"):
        attempt(plan, [("a", torch.zeros(2))])
    with pytest.raises(AssertionError, match="a is not as planned"):
        attempt(plan, [("a", torch.zeros(3))])


def test_shards_are_cut_in_order() -> None:
    plan = [Planned(name, (size,), torch.uint8) for name, size in (("a", 4), ("b", 5), ("c", 20), ("d", 1), ("e", 9))]
    shards = [[planned.name for planned in shard] for shard in in_shards(plan, 10)]
    assert shards == [["a", "b"], ["c"], ["d", "e"]]
    assert list(in_shards([], 10)) == [[]]
