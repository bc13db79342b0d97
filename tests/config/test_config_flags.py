"""Flags that have an effect, and those that do not. Truth: the code that reads them, ours and SAT's (reference)."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from cogvideox.config.command_line import build_parser
from cogvideox.config.flags import FLAGS, INERT_FLAGS

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
ENTRIES = ("train_video.py", "diffusion_video.py", "data_video.py", "latent_cache.py", "arguments.py")
# Where settings are read by their name as text: before the namespace exists.
READ_BY_NAME = ("arguments.py", "cogvideox/config/preflight.py", "cogvideox/config/reconcile.py")
# SAT reads them for something that we replace: the folder of its writer, the place of its sampler.
READ_BY_SAT_IN_VAIN = {"summary_dir", "resume_dataloader"}
# Texts that are no reads: what we set for SAT, and the name of a section.
NOT_READ = READ_BY_SAT_IN_VAIN | {"deepspeed"}
Run = Callable[..., argparse.Namespace]
Write = Callable[..., str]


def _attributes(tree: ast.AST) -> Iterator[str]:
    """NAME of every `args.NAME` and `self.args.NAME` that is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name.strip("_") == "args":
                yield node.attr


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.removeprefix("args.")


def read_by_us() -> set[str]:
    files = [ROOT / name for name in ENTRIES] + sorted((ROOT / "cogvideox").rglob("*.py"))
    found: set[str] = set()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found |= set(_attributes(tree))
        if str(file.relative_to(ROOT)) in READ_BY_NAME:
            found |= set(_texts(tree)) - NOT_READ
    return found


def read_by_sat() -> set[str]:
    """Of SAT's file, the two functions that run as they are: the bridge replaces what they call."""
    spec = find_spec("sat")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "training/deepspeed_training.py").read_text(encoding="utf-8"))
    kept = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in ("training_main", "train")]
    assert len(kept) == 2
    return {name for function in kept for name in _attributes(function)}


def test_every_flag_is_read_or_told_to_be_inert() -> None:
    ours, theirs = read_by_us(), read_by_sat() - READ_BY_SAT_IN_VAIN
    assert set(INERT_FLAGS) <= set(FLAGS)
    for key in FLAGS:
        assert (key in ours | theirs) != (key in INERT_FLAGS), key


@pytest.mark.parametrize("key", sorted(INERT_FLAGS))
def test_help_says_which_flags_have_no_effect(key: str) -> None:
    text = next(action.help for action in build_parser()._actions if action.dest == key)
    assert text is not None and f"(no effect: {INERT_FLAGS[key]})" in text


def test_an_inert_flag_that_is_given_is_named_once_with_its_place(run: Run, write: Write) -> None:
    old = write("args:\n  no_load_rng: true\n  save_args: false\n")
    args = run("--debug", "--sampling-fps", "16", "--deepspeed", base=(QUICKSTART, old))
    notes = [note for note in args.config_notes if "has no effect" in note]
    assert len(notes) == 5
    for place, reason in {
        "--debug true": INERT_FLAGS["debug"],
        "--sampling-fps 16": INERT_FLAGS["sampling_fps"],
        "--deepspeed true": INERT_FLAGS["deepspeed"],
        f"{old}:2": INERT_FLAGS["no_load_rng"],
        f"{old}:3": INERT_FLAGS["save_args"],
    }.items():
        assert sum(place in note and reason in note for note in notes) == 1, place
    assert not INERT_FLAGS.keys() & args.merged_config["args"].keys()


def test_resume_dataloader_is_said_and_kept_from_sat(run: Run) -> None:
    args = run("--resume-dataloader")
    assert args.resume_dataloader is False
    assert any("resume_dataloader" in note for note in args.config_notes)
