"""Keys and digests of the cache.

Truths checked: invariants (every ingredient changes the key, and nothing else does), reference (hashlib), round trip
(the memo's file, with several writers and damaged lines).
"""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogvideox.data import cache_keys
from cogvideox.data.cache_keys import (
    DigestMemo,
    file_digest,
    folder_digest,
    latent_key,
    prompt_key,
    text_version,
    transform_version,
)
from cogvideox.errors import UserError

CLIP: dict[str, Any] = {
    "video_digest": "a" * 32,
    "start_s": 1.25,
    "end_s": 7.5,
    "fps": 8.0,
    "frame_count": 45,
    "frames": 49,
    "size": (480, 720),
    "place": (0.5, 0.5),
    "mirrored": False,
    "vae_digest": "b" * 32,
    "dtype": "torch.float32",
    "autocasts": False,
    "kind": "clip",
}
OTHER_CLIPS = {
    "video_digest": ["a" * 31 + "b"],
    "start_s": [1.250001, 0.0, -1.25],
    "end_s": [7.500001, 6.5],
    "fps": [8.000000000000002, 16.0],
    "frame_count": [49],
    "frames": [53],
    "size": [(480, 721), (481, 720), (720, 480)],
    "place": [(0.5, 0.25), (0.25, 0.5), (0.5, 0.5000000000000001)],
    "mirrored": [True],
    "vae_digest": ["b" * 31 + "a"],
    "dtype": ["torch.bfloat16"],
    "autocasts": [True],
    "kind": ["clip and 8 first frames"],
}
PROMPT: dict[str, Any] = {"text": "a cat", "encoder_digest": "c" * 32, "max_length": 226, "dtype": "torch.float32"}
OTHER_PROMPTS = {
    "text": ["a cat ", "A cat", "", "ａ cat"],
    "encoder_digest": ["c" * 31 + "d"],
    "max_length": [224],
    "dtype": ["torch.bfloat16"],
}


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files just written count as settled."""
    monkeypatch.setattr(cache_keys, "SETTLED_AFTER_NS", -(10**18))


def key_of_clip(values: dict[str, Any]) -> str:
    return latent_key(values["video_digest"], **{name: each for name, each in values.items() if name != "video_digest"})


def key_of_prompt(values: dict[str, Any]) -> str:
    return prompt_key(values["text"], **{name: each for name, each in values.items() if name != "text"})


@pytest.mark.parametrize(
    ("make", "base", "others"), [(key_of_clip, CLIP, OTHER_CLIPS), (key_of_prompt, PROMPT, OTHER_PROMPTS)]
)
def test_every_ingredient_changes_the_key(
    make: Callable[[dict[str, Any]], str], base: dict[str, Any], others: dict[str, list[Any]]
) -> None:
    assert others.keys() == base.keys()
    keys = [make(base)] + [make(base | {name: value}) for name, values in others.items() for value in values]
    assert len(set(keys)) == len(keys)
    assert make(dict(reversed(base.items()))) == make(base)


def test_one_number_in_two_forms_makes_one_key() -> None:
    same = {"start_s": 1.2500000001, "end_s": 7.4999999999, "fps": 8, "size": [480, 720], "place": [0.5, 0.5]}
    for name, value in same.items():
        assert key_of_clip(CLIP | {name: value}) == key_of_clip(CLIP), name
    assert key_of_clip(CLIP | {"start_s": -0.0}) == key_of_clip(CLIP | {"start_s": 0.0})


def test_the_code_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source file and each package's version, on a copy of the sources; no other file."""
    root = tmp_path / "cogvideox"
    shutil.copytree(cache_keys.ROOT / "cogvideox", root, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(cache_keys.ROOT / "latent_cache.py", tmp_path)
    monkeypatch.setattr(cache_keys, "ROOT", tmp_path)
    versions = {"transform": transform_version.__wrapped__, "text": text_version.__wrapped__}

    def changed(path: Path) -> set[str]:
        before = {name: function() for name, function in versions.items()}
        path.write_bytes(path.read_bytes() + b"\n")
        return {name for name, function in versions.items() if function() != before[name]}

    assert versions["transform"]() == transform_version.__wrapped__()
    for name in ("looking", "containers", "reading", "sampling", "scaling", "pictures", "clips"):
        assert changed(root / "data" / f"{name}.py") == {"transform"}, name
    for file in [*sorted((root / "vae").glob("*.py")), root / "checkpoint" / "vae_names.py"]:
        assert changed(file) == {"transform"}, file
    assert changed(root / "conditioning" / "images.py") == {"transform"}
    assert changed(tmp_path / "latent_cache.py") == {"transform", "text"}
    assert changed(root / "conditioning" / "t5.py") == changed(root / "conditioning" / "t5_files.py") == {"text"}
    assert changed(root / "data" / "order.py") == changed(root / "transformer" / "model.py") == set()
    both = {"transform", "text"}
    libraries = {
        "av": {"transform"},
        "pillow": {"transform"},
        "transformers": {"text"},
        "tokenizers": {"text"},
        "torch": both,
    }
    for package, kinds in libraries.items():
        before = {name: function() for name, function in versions.items()}
        real = cache_keys.version
        monkeypatch.setattr(
            cache_keys, "version", lambda name, own=package, real=real: real(name) + "x" * (name == own)
        )
        assert {name for name, function in versions.items() if function() != before[name]} == kinds
        monkeypatch.setattr(cache_keys, "version", real)


# What sources of the keys import, and what decides no entry all the same.
NO_SOURCES = {
    *("errors", "parallel", "platform", "config", "conditioning.conditioner"),
    *(f"checkpoint.{name}" for name in ("reading", "pointers", "safe_loading")),
    *(
        f"data.{name}"
        for name in ("checking", "once", "records", "cache_filling", "cache_keys", "cache_store", "cached")
    ),
}


def test_what_the_sources_import_is_a_source_or_known_to_decide_nothing() -> None:
    """Invariant: a module that is split off one of them is not forgotten."""
    patterns = (*cache_keys.CLIP_SOURCES, *cache_keys.TEXT_SOURCES)
    files = {file for pattern in patterns for file in cache_keys.ROOT.glob(pattern)}
    known = {file.relative_to(cache_keys.ROOT).with_suffix("").as_posix().replace("/", ".") for file in files}
    known |= {f"cogvideox.{name}" for name in NO_SOURCES} | {"cogvideox.vae"}
    imported = {
        node.module
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cogvideox")
    }
    assert imported <= known, "name these in cache_keys.CLIP_SOURCES or TEXT_SOURCES, or here"


def test_versions_are_in_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of_clip(CLIP), key_of_prompt(PROMPT)
    monkeypatch.setattr(cache_keys, "transform_version", lambda: "other")
    monkeypatch.setattr(cache_keys, "text_version", lambda: "other")
    assert key_of_clip(CLIP) != before[0] and key_of_prompt(PROMPT) != before[1]


def test_a_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path / "cache")
    one, two = tmp_path / "one.mp4", tmp_path / "two.mov"
    content = os.urandom(3 * cache_keys.READ_AT_ONCE + 5)
    one.write_bytes(content)
    two.write_bytes(content)
    os.utime(two, (1, 1))
    wanted = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert file_digest(one, memo) == file_digest(two, memo) == wanted
    two.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert file_digest(two, memo) != wanted
    with pytest.raises(UserError, match="missing.mp4 cannot be read"):
        file_digest(tmp_path / "missing.mp4", memo)


def test_what_is_remembered_is_not_read_again(tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = tmp_path / "clip.mp4", tmp_path / "cache"
    file.write_bytes(b"one")
    first = file_digest(file, DigestMemo(folder))
    reads: list[Path] = []
    real = cache_keys._digest_of_content
    monkeypatch.setattr(cache_keys, "_digest_of_content", lambda path: reads.append(path) or real(path))
    memo = DigestMemo(folder)
    assert file_digest(file, memo) == file_digest(file, pickle.loads(pickle.dumps(memo))) == first
    assert not reads
    file.write_bytes(b"two")  # as long as before
    assert file_digest(file, memo) != first and len(reads) == 1
    moved = file.rename(tmp_path / "moved.mp4")
    assert file_digest(moved, memo) == file_digest(moved, DigestMemo(folder)) and len(reads) == 2


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"one")
    file_digest(file, DigestMemo(tmp_path / "cache"))
    assert not (tmp_path / "cache" / "digests.jsonl").exists()


def test_lines_that_are_not_whole_are_passed_over(tmp_path: Path, settled: None) -> None:
    files = [tmp_path / f"{number}.mp4" for number in range(3)]
    for file in files:
        file.write_bytes(file.name.encode())
        file_digest(file, DigestMemo(tmp_path))
    path = tmp_path / "digests.jsonl"
    lines = path.read_text().splitlines()
    wrong = lines[1].replace(json.loads(lines[1])[5], "0" * 32)  # whole JSON, but another digest
    path.write_text("\n".join(["\0\xff", lines[0], lines[2][:20] + lines[0], wrong, "[1]", "7", "{}", lines[2][:40]]))
    memo = DigestMemo(tmp_path)
    assert [memo.find(cache_keys._identity(file)) is not None for file in files] == [True, False, False]
    assert file_digest(files[1], memo) == hashlib.blake2b(b"1.mp4", digest_size=16).hexdigest()


def _remember_many(folder: Path, writer: int) -> None:
    memo = DigestMemo(folder)
    for number in range(200):
        memo.remember((f"{writer}/{number}" + "x" * 100, writer, number, 0, 0), f"{number:032x}")


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_remember_many, args=(tmp_path, writer)) for writer in range(3)]
    reader = DigestMemo(tmp_path)
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    names = [(f"{writer}/{number}" + "x" * 100, writer, number, 0, 0) for writer in range(3) for number in range(200)]
    assert [reader.find(name) for name in names] == [f"{number:032x}" for _ in range(3) for number in range(200)]


def test_the_digest_of_a_network_is_of_its_files_alone(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path / "cache")
    folder = tmp_path / "t5"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "spiece.model"):
        (folder / name).write_bytes(name.encode())
    before = folder_digest([folder], memo)
    (folder / "README.md").write_text("read me")
    (folder / "config.json").touch()
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert folder_digest([folder], memo) == folder_digest([copy], memo) == before
    pipeline = tmp_path / "pipeline"
    shutil.copytree(folder, pipeline / "text_encoder")
    shutil.copytree(folder, pipeline / "tokenizer")
    (pipeline / "model_index.json").write_text("{}")
    whole = folder_digest([pipeline], memo)
    (pipeline / "transformer.safetensors").write_text("no part of the text encoder")
    assert folder_digest([pipeline], memo) == whole
    for name in ("config.json", "model.safetensors", "spiece.model"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"!")
        assert folder_digest([folder], memo) != before, name
        (folder / name).write_bytes(content)
    assert folder_digest([folder], memo) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no weights"):
        folder_digest([tmp_path / "empty"], memo)
    with pytest.raises(UserError, match="missing.pt cannot be read"):
        folder_digest([tmp_path / "missing.pt"], memo)
