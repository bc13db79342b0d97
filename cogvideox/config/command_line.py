"""The command line as text: which flags were given, with what, and which dotted overrides."""

from __future__ import annotations

import argparse
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from cogvideox.config.fitting import Misfit, fit
from cogvideox.config.flags import FLAGS, GROUPS, INERT_FLAGS, YAML_KEYS, Flag
from cogvideox.config.nearest import did_you_mean
from cogvideox.config.report import Problem
from cogvideox.config.sections import SECTIONS
from cogvideox.config.settings import COMMAND_LINE
from cogvideox.errors import UserError

OVERRIDE = re.compile(r"([A-Za-z_]\w*([.\[]\w[\w\]]*)+|" + "|".join(SECTIONS) + ")=")
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None, "null": None}
DESCRIPTION = """Fine-tune CogVideoX. Settings come from YAML files (--base) and from flags; a flag wins over a file, a
later file over an earlier one. Any key of a file can be overridden by its dotted name, as in
`model.network_config.params.num_layers=2`. The keys of a file's `args:` are the flags below."""


@dataclass
class CommandLine:
    """Flags that were given, as values, with the text they were given as; and the overrides."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{COMMAND_LINE}: {message} (`--help` lists the flags)")


def build_parser() -> argparse.ArgumentParser:
    """A parser that only cuts the command line into flags and words; what was not given is absent from its result."""
    parser = _Parser(description=DESCRIPTION, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            group.add_argument(f"--{flag.name}", dest=flag.key, help=_help(flag), **_shape(flag))
    return parser


def parse_command_line(words: Sequence[str], problems: list[Problem]) -> CommandLine:
    """Flags as typed values. Unknown and ill-typed ones are appended to `problems`; `--help` prints and exits."""
    overrides = [word for word in words if OVERRIDE.match(word)]
    bare = [word for word in words if "=" in word and word.partition("=")[0] in YAML_KEYS]
    rest = [_canonical(word) for word in words if not OVERRIDE.match(word) and word not in bare]
    given, strays = build_parser().parse_known_args(rest)
    strays += bare
    line = CommandLine(overrides=overrides)
    for before, stray in zip(["", *strays], strays, strict=False):
        if stray.startswith("-") or not before.startswith("--") or "=" in before:
            problems.append(_stray(stray))
    for key, text in vars(given).items():
        flag = FLAGS[key]
        shown = " ".join(text) if isinstance(text, list) else text
        line.sources[key] = f"{COMMAND_LINE}: --{flag.name} {shown}"
        try:
            line.values[key] = _from_text(text, flag.annotation)
        except Misfit as wanted:
            problems.append(Problem(line.sources[key], "", f"is {shown!r}", f"give {wanted}"))
    return line


def _stray(word: str) -> Problem:
    name = word.lstrip("-").partition("=")[0]
    if word.startswith("--"):
        remedy = did_you_mean(name, [flag.name for flag in FLAGS.values()])
        return Problem(f"{COMMAND_LINE}: {word}", "", "unknown flag", re.sub(r"`([\w-]+)`", r"`--\1`", remedy))
    if name in YAML_KEYS:
        remedy = f"write the whole dotted key, as in `args.{word}`"
    else:
        remedy = "YAML files go after `--base`, overrides look like `data.params.fps=8`"
    return Problem(f"{COMMAND_LINE}: {word}", "", "stands alone", remedy)


def _canonical(word: str) -> str:
    """`--train_iters=5` → `--train-iters=5`, where that is a flag."""
    name, mark, value = word.partition("=")
    key = name.lstrip("-").replace("-", "_")
    return f"--{FLAGS[key].name}{mark}{value}" if name.startswith("--") and key in FLAGS else word


def _options(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_list(annotation: Any) -> bool:
    return any(typing.get_origin(option) is list for option in _options(annotation))


def _shape(flag: Flag) -> dict[str, Any]:
    options = _options(flag.annotation)
    if _is_list(flag.annotation):
        return {"nargs": "*", "action": "extend", "metavar": flag.name.split("-")[-1].upper()}
    if bool in options:
        return {"nargs": "?", "const": "true", "metavar": "true|false"}
    choices = [
        str(each) for option in options if typing.get_origin(option) is Literal for each in typing.get_args(option)
    ]
    return {"metavar": "|".join(choices) if choices else flag.name.split("-")[-1].upper()}


def _help(flag: Flag) -> str:
    default = "" if flag.default in (None, "", [], False) else f" [{flag.default}]"
    effect = f" (no effect: {INERT_FLAGS[flag.key]})" if flag.key in INERT_FLAGS else ""
    return (flag.help + effect + default).replace("%", "%%")


def _from_text(text: Any, annotation: Any) -> Any:
    if isinstance(text, list):
        if [each.lower() for each in text] in (["none"], ["null"]) and type(None) in _options(annotation):
            return None
        (item,) = next(typing.get_args(option) for option in _options(annotation) if typing.get_origin(option) is list)
        return [_from_text(each, item) for each in text]
    if text.lower() in ("none", "null") and type(None) in _options(annotation):
        return None
    if str in _options(annotation):
        return text
    if annotation is bool and text in ("0", "1"):
        return text == "1"
    return fit(_scalar(text), annotation)


def _scalar(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
