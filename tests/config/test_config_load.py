"""Reading and merging. Truths: the stated precedence, and the line that each value stands on (golden values)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.config.load import load_settings, resolve_interpolations
from cogvideox.config.report import Problem
from cogvideox.config.settings import Settings
from cogvideox.config.static_signature import REPOSITORY


def load(folder: Path, files: dict[str, str], base: list[str], *overrides: str) -> tuple[Settings, list[Problem]]:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    problems: list[Problem] = []
    settings = load_settings([str(folder / name) for name in base], overrides, problems)
    resolve_interpolations(settings, problems)
    return settings, problems


def test_a_later_file_wins_and_mappings_merge(tmp_path: Path) -> None:
    files = {"a.yaml": "args: {lr: 1, list: [1, 2]}\nmodel: {x: 1}\n", "b.yaml": "args:\n  lr: 2\n  list: [3]\n"}
    settings, problems = load(tmp_path, files, ["a.yaml", "b.yaml"])
    assert not problems
    assert settings.tree == {"args": {"lr": 2, "list": [3]}, "model": {"x": 1}}
    assert settings.source("args.lr") == f"{tmp_path}/b.yaml:2"
    assert settings.source("model.x") == f"{tmp_path}/a.yaml:2"
    assert [each.value for each in settings.history["args.lr"]] == [1, 2]


def test_an_override_wins_and_reaches_into_lists_and_mappings(tmp_path: Path) -> None:
    files = {"a.yaml": "model: {nodes: [{params: {dir: x, n: 1}}], m: {k: 1, j: 2}}\n"}
    overrides = ("model.nodes.0.params.dir=/y", "model.nodes[0].params.n=1e-4", "model.m={k: 3}", "new.a.b=[1, 2]")
    settings, problems = load(tmp_path, files, ["a.yaml"], *overrides)
    assert not problems
    assert settings.tree["model"]["nodes"] == [{"params": {"dir": "/y", "n": 1e-4}}]
    assert settings.tree["model"]["m"] == {"k": 3, "j": 2}
    assert settings.tree["new"] == {"a": {"b": [1, 2]}}
    assert settings.is_from_command_line("model.nodes.0.params.dir") and not settings.is_from_command_line("model.m.j")


def test_extends_is_relative_to_the_file_and_below_it(tmp_path: Path) -> None:
    files = {
        "deep/root.yaml": "args: {lr: 1, seed: 1, save: a}\n",
        "deep/middle.yaml": "extends: root.yaml\nargs: {lr: 2, seed: 2}\n",
        "top.yaml": "extends: [deep/middle.yaml]\nargs: {lr: 3}\n",
    }
    settings, problems = load(tmp_path, files, ["top.yaml"])
    assert not problems
    assert settings.tree == {"args": {"lr": 3, "seed": 2, "save": "a"}}


def test_files_that_extend_each_other_are_named(tmp_path: Path) -> None:
    _, problems = load(tmp_path, {"a.yaml": "extends: b.yaml\n", "b.yaml": "extends: a.yaml\n"}, ["a.yaml"])
    assert len(problems) == 1
    assert "a.yaml" in problems[0].what and "b.yaml" in problems[0].what


def test_interpolation_of_environment_repository_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPS", "/clips")
    monkeypatch.delenv("NOWHERE", raising=False)
    text = """\
args:
  a: ${oc.env:CLIPS,x}
  b: ${oc.env:NOWHERE,${repo}/weights}/t5
  c: ["${args.a}"]
  d: ${model.node}
  e: ${oc.env:NOWHERE}
model: {node: {n: 1}}
"""
    settings, problems = load(tmp_path, {"a.yaml": text}, ["a.yaml"])
    values = settings.tree["args"]
    assert values["a"] == "/clips" and values["c"] == ["/clips"] and values["d"] == {"n": 1}
    assert values["b"] == f"{REPOSITORY}/weights/t5"
    assert settings.source("args.d.n").endswith("a.yaml:5")
    assert [(problem.where, problem.key) for problem in problems] == [(f"{tmp_path}/a.yaml:6", "args.e")]
    assert "NOWHERE" in problems[0].what


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("args:\n  lr: [1,\nmodel: 2\n", "a.yaml:4"),
        ("args:\n\tlr: 1\n", "a.yaml:2"),
        ("args:\n  lr: 1\n  lr: 2\n", "a.yaml:3"),
        ("- args\n", "a.yaml"),
        ("args: !!python/object/apply:os.system ['true']\n", "a.yaml:1"),
    ],
)
def test_what_is_not_valid_yaml_is_named_with_its_line(tmp_path: Path, text: str, place: str) -> None:
    settings, problems = load(tmp_path, {"a.yaml": text}, ["a.yaml"])
    assert len(problems) == 1 and place in problems[0].where
    assert settings.tree == {}


def test_a_missing_file_says_which_there_are(tmp_path: Path) -> None:
    _, problems = load(tmp_path, {"right.yaml": "args: {}\n"}, [])
    load_settings([str(tmp_path / "wrong.yaml")], (), problems)
    assert "wrong.yaml" in problems[0].what and "right.yaml" in problems[0].remedy
