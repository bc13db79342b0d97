"""How large a config may be: a short YAML file can stand for more than a machine holds, by aliases of aliases."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 10_000_000
MOST_NODES = 100_000
DEEPEST = 100


def read_limited(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a plain file. Raises OSError: no such file, no plain file (a device, a pipe), or a larger one."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no plain file")
    if status.st_size > most_bytes:
        raise OSError(f"{path} has {status.st_size:,} bytes, at most {most_bytes:,} are read")
    return path.read_text(encoding="utf-8")


def safe_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values, within the bounds. Raises OSError, UnicodeDecodeError, yaml.YAMLError."""
    loader = yaml.SafeLoader(read_limited(path))
    try:
        root = loader.get_single_node()
        if fault := fault_of_tree(root):
            raise yaml.YAMLError(fault)
        return None if root is None else loader.construct_document(root)
    except RecursionError as error:
        raise yaml.YAMLError("is nested too deep") from error
    except (ValueError, AttributeError, TypeError, OverflowError) as error:  # of a tag whose value does not fit it
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def fault_of_tree(root: yaml.Node | None) -> str | None:
    """Why a YAML document is not to be built: how many values it stands for with its aliases filled in, and how deep.

    Each node is counted once, by what lies below it, so that this takes no longer than the text is.
    """
    sizes: dict[int, int] = {}
    try:
        count = 0 if root is None else _size(root, sizes, 0)
    except _Faulty as fault:
        return str(fault)
    return f"stands for {count:,} values, at most {MOST_NODES:,} are taken" if count > MOST_NODES else None


class _Faulty(Exception):
    """The text is the fault."""


def _size(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """Nodes at and below `node`. `sizes` has those of the nodes seen; of those that are being looked at, 0."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _Faulty(f"holds a value that contains itself (line {node.start_mark.line + 1})")
        return sizes[id(node)]
    if depth > DEEPEST:
        raise _Faulty(f"is nested deeper than {DEEPEST} levels (line {node.start_mark.line + 1})")
    sizes[id(node)] = 0
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    sizes[id(node)] = 1 + sum(_size(each, sizes, depth + 1) for each in below)
    return sizes[id(node)]
