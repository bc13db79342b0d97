"""Read YAML configs: several files in order, `extends:`, interpolation, dotted overrides, and who set what."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cogvideox.config.bounds import fault_of_tree, read_limited
from cogvideox.config.nearest import nearest
from cogvideox.config.report import Problem
from cogvideox.config.secrets import guard_environment
from cogvideox.config.settings import COMMAND_LINE, Settings, leaves
from cogvideox.config.static_signature import REPOSITORY


def load_settings(files: Sequence[str], overrides: Sequence[str], problems: list[Problem]) -> Settings:
    """Merge `files` in order, then `overrides` (`a.b=value`). Mistakes are appended to `problems`."""
    settings = Settings()
    for name in files:
        _add_file(settings, Path(name), (), problems)
    for override in overrides:
        _add_override(settings, override, problems)
    return settings


def resolve_interpolations(settings: Settings, problems: list[Problem]) -> None:
    """Replace every `${…}`: `${oc.env:NAME,default}` is of the environment, `${repo}` this repository's folder."""
    guard_environment()
    config = OmegaConf.create({**settings.tree, "repo": str(REPOSITORY)})
    for key, value in list(leaves(settings.tree)):
        if not (isinstance(value, str) and "${" in value):
            continue
        try:
            found = OmegaConf.select(config, _bracketed(key))
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            remedy = "set what it names, or give a default as in ${oc.env:NAME,default}"
            problems.append(Problem(settings.source(key), key, f"`{value}` does not resolve ({reason})", remedy))
            continue
        source = settings.source(key)
        settings.history[key].pop()
        settings.set(key, OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found, source)


def parse_scalar(text: str) -> Any:
    """The value that YAML gives to `text`: `1e-4` a number, `[1, 2]` a list, `null` None. Raises yaml.YAMLError."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]


def _add_file(settings: Settings, path: Path, chain: tuple[Path, ...], problems: list[Problem]) -> None:
    name = _shown(path)
    if _real(path) in chain:
        route = " → ".join(_shown(each) for each in (*chain, path))
        problems.append(Problem(name, "extends", f"the files extend each other ({route})", "break the circle"))
        return
    content, lines = _read(path, chain, problems)
    parents = content.pop("extends", [])
    for parent in [parents] if isinstance(parents, str) else parents or []:
        if not isinstance(parent, str):
            problems.append(Problem(name, "extends", f"{parent!r} is not a file name", "give one, or a list of them"))
            continue
        _add_file(settings, path.parent / parent, (*chain, _real(path)), problems)
    settings.merge(content, {key: f"{name}:{line}" for key, line in lines.items()}, name)


def _read(path: Path, chain: tuple[Path, ...], problems: list[Problem]) -> tuple[dict[str, Any], dict[str, int]]:
    """The content of a YAML file and the line of every key; both empty (and a problem noted) if it cannot be read."""
    name = _shown(path)
    flag = f"extended by {_shown(chain[-1])}" if chain else "--base"
    try:
        text = read_limited(path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if fault := fault_of_tree(root):
            problems.append(Problem(name, "", fault, "write it out, or split it into several files"))
            return {}, {}
        if root is not None and not isinstance(root, yaml.MappingNode):
            problems.append(
                Problem(name, "", "is not a mapping of keys", "start it with `args:`, `model:` or the like")
            )
            return {}, {}
        content = OmegaConf.to_container(OmegaConf.create(text))
    except FileNotFoundError:
        problems.append(Problem(flag, "", f"there is no file {name}", _suggest_file(path)))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(flag, "", f"{name} cannot be read ({error})", "give a readable UTF-8 YAML file"))
    except RecursionError:
        problems.append(Problem(name, "", "is nested too deep", "write it with fewer levels"))
    except yaml.MarkedYAMLError as error:
        mark, context = error.problem_mark or error.context_mark, error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        what = f"not valid YAML: {error.problem or error.context}"
        remedy = (
            f"correct it (what is read there starts on line {context.line + 1})" if context else "correct that line"
        )
        problems.append(Problem(where, "", what, remedy))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problems.append(Problem(name, "", f"not valid YAML: {str(error).splitlines()[0]}", "correct it"))
    except (ValueError, AttributeError, TypeError, OverflowError) as error:  # of a tag whose value does not fit it
        problems.append(Problem(name, "", f"not valid YAML: {error}", "correct the values with tags (`!!int`, …)"))
    else:
        assert isinstance(content, dict)
        return {str(key): value for key, value in content.items()}, dict(_lines(root, ""))
    return {}, {}


def _suggest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either (working directory: {Path.cwd()})"
    found = sorted(each.name for each in folder.iterdir() if each.suffix in (".yaml", ".yml"))
    if not found:
        return f"no YAML file stands in {folder.resolve()}"
    near = nearest(path.name, found)
    return f"did you mean `{near}`?" if near else "there are: " + ", ".join(found)


def _lines(node: yaml.Node | None, prefix: str) -> list[tuple[str, int]]:
    pairs: list[tuple[str, int]] = []
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), item, item) for index, item in enumerate(node.value)]
    for name, start, child in children:
        key = f"{prefix}.{name}" if prefix else name
        pairs.append((key, start.start_mark.line + 1))
        pairs.extend(_lines(child, key))
    return pairs


def _add_override(settings: Settings, override: str, problems: list[Problem]) -> None:
    key, _, text = override.partition("=")
    try:
        value = parse_scalar(text)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        problems.append(Problem(COMMAND_LINE, key, f"`{text}` is not a YAML value ({reason})", "quote it"))
        return
    source = f"{COMMAND_LINE}: {override}"
    if not _lay(settings, key, value, source):
        what = "a part of this key is neither a mapping nor a list item"
        problems.append(Problem(COMMAND_LINE, key, what, "see what stands there with `--explain`"))


def _lay(settings: Settings, key: str, value: Any, source: str) -> bool:
    """Set `key`; a mapping is merged into the mapping that stands there."""
    if isinstance(value, Mapping) and isinstance(settings.get(key), Mapping):
        return all([_lay(settings, f"{key}.{name}", item, source) for name, item in value.items()])
    return settings.set(key, value, source)


def _bracketed(key: str) -> str:
    """`a.0.b` → `a[0].b`, as OmegaConf.select wants list indices."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in key.split(".")).lstrip(".")


def _real(path: Path) -> Path:
    """Without links; unlike `Path.resolve` it takes links that lead in a circle, which then cannot be read."""
    return Path(os.path.realpath(path))


def _shown(path: Path) -> str:
    """A path as a person would write it: relative to the working directory where it lies below it."""
    try:
        return str(_real(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)
