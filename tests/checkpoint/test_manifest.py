"""Truths: no byte of a checkpoint or of its manifest changes, goes or comes unseen; what is damaged is passed over."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.checkpoint import saving
from cogvideox.checkpoint.durable import Written
from cogvideox.checkpoint.manifest import MANIFEST, MOST_BYTES, Damaged, Manifest, fault_of
from cogvideox.errors import UserError
from cogvideox.parallel import Group
from cogvideox.sat_bridge import run_folder
from cogvideox.sat_bridge.run_folder import make_run_folder

MODEL, OPTIMIZER = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"
SIZE = 19999  # bytes: a digit of it that turns into an `e` makes a number too large for any integer


def saved(run: Path, *iterations: int) -> Path:
    """A run with a checkpoint of two files at each of `iterations`."""
    run.mkdir(exist_ok=True)
    for iteration in iterations:
        weights = torch.arange(400.0) + iteration
        contents = {MODEL: {"module": {"w": weights}}, OPTIMIZER: {"exp_avg": weights, "step": iteration}}
        saving.store(saving.Snapshot(iteration, contents), run, Group())
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that must stay whole."""
    return saved(tmp_path_factory.mktemp("manifest") / "run", 3) / "3"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run" / "3"))


@pytest.fixture(autouse=True)
def no_locks_stay() -> Iterator[None]:
    yield
    for run in list(run_folder._held):
        run_folder.release(run)


def test_what_was_saved_is_whole(whole: Path) -> None:
    manifest = Manifest.read(whole)
    assert fault_of(whole) is None and (manifest.iteration, manifest.ranks) == (3, 1)
    assert set(manifest.files) == {MODEL, OPTIMIZER}
    for name, written in manifest.files.items():
        data = (whole / name).read_bytes()
        assert written == (len(data), hashlib.sha256(data).hexdigest())


def test_every_change_of_every_byte_of_a_manifest_is_seen(tmp_path: Path) -> None:
    """All 255 others of each byte, so every single bit too."""
    (tmp_path / "a").write_bytes(bytes(SIZE))
    Manifest.of(tmp_path, 2, 1).write(tmp_path)
    path = tmp_path / MANIFEST
    data = path.read_bytes()
    assert f'"bytes": {SIZE}'.encode() in data and fault_of(tmp_path) is None
    with path.open("r+b", buffering=0) as file:
        for place, right in enumerate(data):
            for wrong in range(256):
                if wrong != right:
                    os.pwrite(file.fileno(), bytes([wrong]), place)
                    with pytest.raises(Damaged, match=MANIFEST):
                        Manifest.read(tmp_path)
            os.pwrite(file.fileno(), bytes([right]), place)
    assert fault_of(tmp_path) is None


def test_every_length_but_its_own_of_a_manifest_is_seen(copy: Path) -> None:
    path = copy / MANIFEST
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert MANIFEST in (fault_of(copy) or ""), length
    for tail in (b"\n", b" ", b"\0", data):
        path.write_bytes(data + tail)
        assert MANIFEST in (fault_of(copy) or ""), tail


def test_two_hundred_flipped_bytes_of_the_shards_are_seen(copy: Path) -> None:
    draws = random.Random(0)
    contents = {name: (copy / name).read_bytes() for name in (MODEL, OPTIMIZER)}
    for number in range(200):
        name, change = (MODEL, OPTIMIZER)[number % 2], draws.randrange(1, 256)
        data = bytearray(contents[name])
        place = draws.randrange(len(data))
        data[place] ^= change
        (copy / name).write_bytes(data)
        assert fault_of(copy) == f"is damaged: {name} is not what was saved", (name, place, change)
        (copy / name).write_bytes(contents[name])
    assert fault_of(copy) is None


def test_every_truncation_of_a_small_file_is_seen(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4
    (tmp_path / "small").write_bytes(data)
    Manifest.of(tmp_path, 1, 1).write(tmp_path)
    for length in range(len(data) + 3):
        (tmp_path / "small").write_bytes((data + b"\0\0\0")[:length])
        right = None if length == len(data) else f"is damaged: small has {length} bytes, saved were {len(data)}"
        assert fault_of(tmp_path) == right


def test_truncations_of_a_large_file_are_seen(tmp_path: Path) -> None:
    size = 50_000_000
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    Manifest.of(tmp_path, 1, 1).write(tmp_path)
    assert fault_of(tmp_path) is None
    for length in (size - 1, size - 512, size - 4096, size // 2, 1 << 22, 4096, 1, 0, size + 1):
        os.truncate(tmp_path / "large", length)
        assert fault_of(tmp_path) == f"is damaged: large has {length} bytes, saved were {size}"


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, MANIFEST])
def test_a_missing_and_an_empty_file_are_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"")
    assert name in (fault_of(copy) or "")
    (copy / name).unlink()
    assert name in (fault_of(copy) or "")
    (copy / name).mkdir()
    assert name in (fault_of(copy) or "")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "a" * 300])
def test_a_name_that_leads_elsewhere_is_refused_even_where_the_digest_is_right(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "3"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    Manifest(3, 1, {name: Written(1, hashlib.sha256(b"x").hexdigest())}).write(folder)
    assert fault_of(folder) is not None


def test_a_manifest_of_another_checkpoint_is_seen(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", 1, 2)
    shutil.copy(run / "1" / MANIFEST, run / "2" / MANIFEST)
    assert fault_of(run / "2") is not None and fault_of(run / "1") is None
    shutil.copy(run / "1" / MODEL, run / "2" / MODEL)
    assert fault_of(run / "2") == f"is damaged: {OPTIMIZER} is not what was saved"


def test_a_manifest_of_a_hundred_megabytes_is_not_read_to_its_end(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / MANIFEST
    data = path.read_bytes()
    path.write_bytes(data + b" " * MOST_BYTES)  # as JSON it still says the same
    os.truncate(path, 100_000_000)
    parsed = []
    monkeypatch.setattr(json, "loads", lambda text, load=json.loads: parsed.append(len(text)) or load(text))
    assert MANIFEST in (fault_of(copy) or "") and parsed == [MOST_BYTES + 1]


NESTED = b"[" * 100_000
WRONG = [
    b"null", b"[]", b"{}", b"3", b'"files"', b"\xff\xfe", NESTED, b'{"files": []}', b'{"files": {"a": null}}',
    b'{"files": {"a": {"bytes": 1e999, "sha256": ""}}, "iteration": 1, "ranks": 1}',
    b'{"files": {}, "iteration": Infinity, "ranks": NaN}',
    b'{"files": {}, "iteration": ' + b"9" * 5000 + b', "ranks": 1}',
]  # fmt: skip


@pytest.mark.parametrize("data", WRONG, ids=range(len(WRONG)))
def test_whatever_stands_in_a_manifest_is_a_fault_in_words(copy: Path, data: bytes) -> None:
    (copy / MANIFEST).write_bytes(data)
    assert MANIFEST in (fault_of(copy) or "")


def arguments(save: Path, resume: str) -> argparse.Namespace:
    return argparse.Namespace(save=str(save), experiment_name="trial", load=None, mode="pretrain", resume=resume)


def flip(checkpoint: Path) -> None:
    data = bytearray((checkpoint / OPTIMIZER).read_bytes())
    data[len(data) // 3] ^= 64
    (checkpoint / OPTIMIZER).write_bytes(data)


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / MODEL, 100)


def lose(checkpoint: Path) -> None:
    (checkpoint / OPTIMIZER).unlink()


def break_manifest(checkpoint: Path) -> None:
    text = (checkpoint / MANIFEST).read_text()
    (checkpoint / MANIFEST).write_text(text.replace('"ranks": 1', '"ranks": 2'))


def lose_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()


DAMAGES: dict[Any, str] = {
    flip: f"is damaged: {OPTIMIZER} is not what was saved",
    truncate: f"is damaged: {MODEL} has 100 bytes",
    lose: f"lacks {OPTIMIZER}",
    break_manifest: f"has a {MANIFEST} that was changed",
    lose_manifest: f"has no {MANIFEST}",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_damaged_is_named_and_the_one_before_it_is_taken(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = saved(tmp_path / "trial-01-02-03-04", 1, 2, 3)
    damage(run / "3")
    for named in (run, run / "3"):
        with pytest.raises(UserError) as refused:
            make_run_folder(arguments(tmp_path, str(named)))
        assert f"{run / '3'} {DAMAGES[damage]}" in str(refused.value)
        assert str(refused.value).endswith(f"take the one before it: --resume {run / '2'}")
    args = arguments(tmp_path, "auto")
    assert make_run_folder(args) == run and args.resume == str(run / "2")
    assert f"{run / '3'} {DAMAGES[damage]}" in caplog.text
    for checkpoint in (run / "2", run / "1"):
        damage(checkpoint)
    fresh = arguments(tmp_path, "auto")
    assert make_run_folder(fresh) != run and fresh.resume is None
    with pytest.raises(UserError, match="begin anew without --resume"):
        make_run_folder(arguments(tmp_path, str(run / "1")))
