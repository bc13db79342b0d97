"""The command line of sample_video.py as typed values and dotted overrides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from cogvideox.config.command_line import OVERRIDE, CommandLine
from cogvideox.config.fitting import Misfit, fit
from cogvideox.config.flags import Flag
from cogvideox.config.load import parse_scalar
from cogvideox.config.nearest import did_you_mean
from cogvideox.config.report import Problem
from cogvideox.config.sampling_flags import SAMPLING_FLAGS, SAMPLING_GROUPS
from cogvideox.config.settings import COMMAND_LINE
from cogvideox.errors import UserError

DESCRIPTION = """Draw videos from prompts with any CogVideoX checkpoint. The model comes from a run's folder (--run) or
from YAML files and weights (--base, --load); prompts from --prompt, --prompts or --interactive. Any key of a file can
be overridden by its dotted name, as in `model.sampler_config.params.num_steps=20`. A file's `args:` may hold the flags
below, with _ for -; a flag wins over a file."""
FREE_TEXT = ("--prompt", "--negative-prompt")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{COMMAND_LINE}: {message} (`--help` lists the flags)")


def parse_sampling_line(words: Sequence[str], problems: list[Problem]) -> CommandLine:
    """What was given, typed. Unknown and ill-typed flags are appended to `problems`; `--help` prints and exits."""
    befores = ["", *words]
    is_override = [
        bool(OVERRIDE.match(word)) and before not in FREE_TEXT for before, word in zip(befores, words, strict=False)
    ]
    pairs = list(zip(words, is_override, strict=True))
    line = CommandLine(overrides=[word for word, is_one in pairs if is_one])
    given, strays = _parser().parse_known_args([_canonical(word) for word, is_one in pairs if not is_one])
    problems += [_stray(word) for word in strays if word.startswith("--") or not _is_value(word, strays)]
    for key, text in vars(given).items():
        flag = SAMPLING_FLAGS[key]
        line.sources[key] = f"{COMMAND_LINE}: --{flag.name}" + ("" if isinstance(text, list) else f" {text}")
        try:
            line.values[key] = _typed(text, flag.annotation)
        except Misfit as wanted:
            shown = " ".join(text) if isinstance(text, list) else text
            problems.append(Problem(line.sources[key], "", f"is {shown!r}", f"give {wanted}"))
    return line


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(description=DESCRIPTION, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for title, flags in SAMPLING_GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            group.add_argument(f"--{flag.name}", dest=flag.key, help=_help(flag), **_shape(flag))
    return parser


def _canonical(word: str) -> str:
    """`--num_steps=5` → `--num-steps=5`, where that is a flag."""
    name, mark, value = word.partition("=")
    key = name.lstrip("-").replace("-", "_")
    is_flag = name.startswith("--") and key in SAMPLING_FLAGS
    return f"--{SAMPLING_FLAGS[key].name}{mark}{value}" if is_flag else word


def _shape(flag: Flag) -> dict[str, Any]:
    options = get_args(flag.annotation) if get_origin(flag.annotation) is not list else ()
    if flag.key == "prompt":  # one word each, so that a forgotten quote is told
        return {"action": "append", "metavar": "TEXT[@@IMAGE]"}
    if get_origin(flag.annotation) is list or any(get_origin(option) is list for option in options):
        return {"nargs": "*", "action": "extend", "metavar": flag.name.split("-")[-1].upper()}
    if flag.annotation is bool:
        return {"nargs": "?", "const": "true", "metavar": "true|false"}
    choices = [name for option in options if get_origin(option) is Literal for name in get_args(option)]
    return {"metavar": "|".join(choices) if choices else flag.name.split("-")[-1].upper()}


def _help(flag: Flag) -> str:
    default = "" if flag.default in (None, [], False) else f" [{flag.default}]"
    return (flag.help + default).replace("%", "%%")


def _typed(text: Any, annotation: Any) -> Any:
    """YAML's value of a flag's text, except where text is what is wanted."""
    options = (annotation, *get_args(annotation))
    if list[str] in options or str in options:
        return text
    try:
        value = [parse_scalar(each) for each in text] if isinstance(text, list) else parse_scalar(text)
    except yaml.YAMLError:
        value = text
    return fit(value, annotation)


def _is_value(word: str, strays: list[str]) -> bool:
    """Whether a stray word follows an unknown flag, and so is told with it."""
    place = strays.index(word)
    return place > 0 and strays[place - 1].startswith("--") and "=" not in strays[place - 1]


def _stray(word: str) -> Problem:
    if word.startswith("--"):
        name = word.lstrip("-").partition("=")[0]
        return Problem(
            f"{COMMAND_LINE}: {word}", "", "unknown flag", did_you_mean(name, _names()).replace("`", "`--", 1)
        )
    remedy = 'quote a prompt, `--prompt "two words"`; YAML files go after `--base`'
    return Problem(f"{COMMAND_LINE}: {word}", "", "stands alone", remedy)


def _names() -> list[str]:
    return [flag.name for flag in SAMPLING_FLAGS.values()]
