"""A tree of settings in which every leaf knows who set it, and what it overrode."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MISSING: Final = object()
DEFAULT: Final = "default"
COMMAND_LINE: Final = "command line"


@dataclass(frozen=True)
class Setting:
    """A leaf's value (as written, interpolations unresolved) and where it came from."""

    value: Any
    source: str


def split_key(key: str) -> list[str]:
    """`a.b[0].c` and `a.b.0.c` → [a, b, 0, c]."""
    return [part for part in re.split(r"[.\[\]]+", key) if part]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf below `node` with its dotted key; of list items the index. Empty containers are leaves."""
    children = list(_children(node))
    if not children:
        yield prefix, node
    for name, child in children:
        yield from leaves(child, f"{prefix}.{name}" if prefix else name)


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from ((str(name), child) for name, child in node.items())
    elif isinstance(node, list):
        yield from ((str(index), child) for index, child in enumerate(node))


@dataclass
class Settings:
    """The merged tree, and for each leaf its settings, the one in force last."""

    tree: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[Setting]] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key, or `default` where nothing stands there."""
        node: Any = self.tree
        for part in split_key(key):
            node = _child(node, part)
            if node is MISSING:
                return default
        return node

    def source(self, key: str) -> str:
        """Who set `key`: of a mapping or list, the first leaf's source; of something absent, the parent's file."""
        if key in self.history:
            return self.history[key][-1].source
        below = [self.history[each][-1].source for each in self.history if each.startswith(key + ".")]
        if below:
            return below[0]
        return self.source(key.rpartition(".")[0]).partition(":")[0] if "." in key else ""

    def is_given(self, key: str) -> bool:
        """Whether a file or a flag set `key`, rather than a default."""
        return self.get(key, MISSING) is not MISSING and self.source(key) != DEFAULT

    def is_from_command_line(self, key: str) -> bool:
        return self.get(key, MISSING) is not MISSING and self.source(key).startswith(COMMAND_LINE)

    def set(self, key: str, value: Any, source: str) -> bool:
        """Put `value` at a dotted key, making mappings on the way. False if something else stands in the way."""
        *parents, name = split_key(key)
        node: Any = self.tree
        for part in parents:
            child = _child(node, part)
            if child is MISSING or child is None:
                if not _assign(node, part, {}):
                    return False
                child = _child(node, part)
            node = child
        if not _assign(node, name, value):
            return False
        self._record(".".join([*parents, name]), value, source)
        return True

    def move(self, old: str, new: str) -> None:
        """Take what stands at `old` to `new`, with its source; what stands at `new` already stays."""
        value, sources = self.get(old), {key: self.source(key) for key, _ in leaves(self.get(old), old)}
        self.remove(old)
        for key, leaf in leaves(value, old):
            place = new + key.removeprefix(old)
            if self.get(place, MISSING) is MISSING:
                self.set(place, leaf, sources[key])

    def remove(self, key: str) -> None:
        """Take a key out, with all that stands below it and its history."""
        parent, _, name = key.rpartition(".")
        self.get(parent).pop(name, None)
        for each in [each for each in self.history if each == key or each.startswith(key + ".")]:
            del self.history[each]

    def merge(self, new: Mapping[str, Any], sources: Mapping[str, str], fallback: str) -> None:
        """Lay `new` over the tree: mappings merge, everything else (lists too) replaces."""
        for key, value in _replacements(self.tree, new, ""):
            below = {name: sources.get(name, fallback) for name, _ in leaves(value, key)}
            self.set(key, value, sources.get(key, fallback))
            for name, source in below.items():
                self.history[name][-1] = Setting(self.history[name][-1].value, source)

    def _record(self, key: str, value: Any, source: str) -> None:
        new = dict(leaves(value, key))
        for old in [each for each in self.history if each == key or each.startswith(key + ".")]:
            if old not in new:
                del self.history[old]
        for parent in _parents(key):
            self.history.pop(parent, None)
        for name, leaf in new.items():
            self.history.setdefault(name, []).append(Setting(leaf, source))


def _parents(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _child(node: Any, part: str) -> Any:
    if isinstance(node, Mapping):
        return node.get(part, MISSING)
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    return MISSING


def _assign(node: Any, part: str, value: Any) -> bool:
    if isinstance(node, dict):
        node[part] = value
        return True
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        node[int(part)] = value
        return True
    return False


def _replacements(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The subtrees of `new` that replace what stands in `old`, with their dotted keys."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and (new or not key):
        for name, value in new.items():
            yield from _replacements(old.get(name, MISSING), value, f"{key}.{name}" if key else str(name))
    elif not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        yield key, new
