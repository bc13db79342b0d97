"""Truth: what downloads are known to leave behind is named for what it is; whatever may be weights passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cogvideox.checkpoint.first_bytes import fault_of_file
from cogvideox.checkpoint.reading import read_state_dict
from cogvideox.errors import UserError

WEIGHTS = {"a": torch.arange(3.0)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (POINTER, "Git LFS pointer"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"<html><body>404</body></html>", "web page"),
    ],
)
def test_what_a_download_leaves_is_named(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert fault in str(fault_of_file(tmp_path / name))
    with pytest.raises(UserError, match=fault) as told:
        read_state_dict(tmp_path / name)
    assert "weights_only=False" not in str(told.value)  # no advice to run what is not understood


def test_text_is_no_weight_file(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("hi\n")
    assert fault_of_file(tmp_path / "a.pt") == "is text, not weights"


def test_each_form_under_the_others_name_and_its_own(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "right.safetensors")
    save_file(WEIGHTS, tmp_path / "wrong.pt")
    torch.save(WEIGHTS, tmp_path / "right.pt")
    torch.save(WEIGHTS, tmp_path / "wrong.safetensors")
    torch.save(WEIGHTS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    faults = {path.name: fault_of_file(path) for path in tmp_path.iterdir()}
    assert faults["right.safetensors"] is faults["right.pt"] is faults["old.pt"] is None
    assert ".safetensors" in str(faults["wrong.pt"]) and ".pt" in str(faults["wrong.safetensors"])


def test_a_safetensors_file_cut_off_in_its_header(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:20])
    assert "end is missing" in str(fault_of_file(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    "noise", [b"\x80\x02}q\x00.", b"\x80\x02h\xff.", bytes(range(1, 60)), b"PK\x03\x04" + b"\0" * 90]
)
def test_whatever_a_damaged_file_makes_torch_raise_is_one_error(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(noise)
    with pytest.raises(UserError, match="a.pt"):
        read_state_dict(tmp_path / "a.pt")
